"""The recipe of the starter checkpoint: from labelled rows to the folder that is shipped.

    python -m shieldgate.tuning.starter --data DATA --out runs/starter

Two teachers come first: a sentence encoder says what each text means, and a linear model what it
believes of the harms that are not labelled. Then each stage is cheaper per label than the next:
words (each token by itself), trunks (whole texts, all labels at once, and their meaning), questions
(prompts as they are scored, about longer texts, too). The shipped checkpoint is what the defaults
give.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from transformers import AutoTokenizer, Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerBase

from shieldgate.errors import ConfigurationError
from shieldgate.policy import Policy, load_book
from shieldgate.prompt import TEMPLATES
from shieldgate.scoring.local.tokenizer import prompt_encoder
from shieldgate.tuning.attention import PADDED
from shieldgate.tuning.beliefs import beliefs
from shieldgate.tuning.contrast import contrast_rows
from shieldgate.tuning.loop import Objective, Schedule, train
from shieldgate.tuning.meanings import meanings
from shieldgate.tuning.objectives import QuestionStage, Student, Summary, TrunkStage, WordStage
from shieldgate.tuning.rows import Row, read_rows
from shieldgate.tuning.sampling import Mix, Pool
from shieldgate.tuning.tokenizer import train_tokenizer
from shieldgate.tuning.wording import ANY, HARMS, Guidelines

TEMPLATE = TEMPLATES["chat"]
# Far longer than almost all of the training texts; what is longer is scored in windows.
CONTEXT = 2_048
VOCABULARY = 16_384
SHARES = {
    "dangerous": 0.18,
    "harassment": 0.18,
    "hate": 0.20,
    "sexual": 0.14,
    "violence": 0.12,
    "profanity": 0.06,
    ANY: 0.12,
}


def main(
    *,
    data: Annotated[Path, typer.Option(help="Folder with train.jsonl.gz and benign.jsonl.gz.")],
    out: Annotated[
        Path, typer.Option(help="Where the checkpoint goes. Run again to go on after a stop.")
    ],
    seed: int = 0,
    word_steps: int = 900,
    trunk_steps: int = 4400,
    question_steps: int = 2900,
    encoder: Annotated[
        str, typer.Option(help="Sentence encoder to imitate: a folder, or a name on the hub.")
    ] = "sentence-transformers/all-MiniLM-L6-v2",
    hold_out: Annotated[
        str | None, typer.Option(help="Learn nothing of this harm, to see what reading alone does.")
    ] = None,
    threads: Annotated[
        int, typer.Option(help="Cores to use; another number rounds otherwise.")
    ] = 2,
    half: Annotated[
        bool, typer.Option(help="Multiply in bfloat16: faster where the processor has it.")
    ] = True,
) -> None:
    """Train the starter and save it in OUT/checkpoint."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    folder = out / "checkpoint"
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        *read_rows(data / "train.jsonl.gz"),
        *read_rows(data / "benign.jsonl.gz"),
        *contrast_rows(),
    ]
    guidelines = Guidelines(official_policies())
    tokenizer = _tokenizer(rows, guidelines, folder)
    model = _model(len(tokenizer)).train()
    student = Student(
        model, prompt_encoder(tokenizer, TEMPLATE.control_tokens), TEMPLATE, half=half, cuts=0.12
    )
    shares = shares_without(hold_out)
    with _progress() as progress:
        texts = [row.text for row in rows]
        on_text = _counted(progress, "meanings", len(rows))
        meant = meanings(texts, encoder, out / "meanings.npy", on_text)
        on_text(len(rows))
        harms = [harm for harm in shares if harm != ANY]
        on_harm = _counted(progress, "beliefs", len(harms))
        believed = beliefs(rows, meant, harms, out / "beliefs.npy", on_harm)
        on_harm(len(harms))
        pool = Pool(rows, Mix(shares), believed)
        longer = Pool(rows, Mix(shares, longest=1000, embedded=0.15), believed)
        summary = Summary(model.config.hidden_size, meant)
        words = WordStage(student, lambda step: pool.sweep(seed, step, 512))
        trunks = TrunkStage(student, summary, partial(pool.draw, seed, size=32), seed=seed)
        questions = QuestionStage(
            student,
            summary,
            partial(longer.draw, seed + 1, size=16),
            guidelines,
            questions=3,
            seed=seed,
        )
        _stage("words", words, Schedule(word_steps, 3e-3), out, progress)
        words.settle(0.05)
        _stage("trunks", trunks, Schedule(trunk_steps, 2e-3), out, progress)
        _stage("questions", questions, Schedule(question_steps, 1.5e-3), out, progress)
    model.to(torch.bfloat16).save_pretrained(folder)


def shares_without(hold_out: str | None) -> Mapping[str, float]:
    """Weigh the harms to learn; raise ConfigurationError if the one held out is none."""
    if hold_out is None:
        return SHARES
    if hold_out not in HARMS:
        raise ConfigurationError(f"--hold-out {hold_out!r} is no harm; known: {', '.join(HARMS)}.")
    # Whether a row has any harm would tell of the one held out.
    return {harm: share for harm, share in SHARES.items() if harm not in (hold_out, ANY)}


def official_policies() -> Mapping[str, Policy]:
    """Take the shipped ShieldGemma policies, by harm."""
    policies = load_book().policies
    return {harm: policies[f"shieldgemma/{harm}"] for harm in HARMS if harm != ANY}


def _tokenizer(
    rows: Sequence[Row], guidelines: Guidelines, folder: Path
) -> PreTrainedTokenizerBase:
    """Train the tokenizer, or take the one that an earlier run left."""
    if (folder / "tokenizer.json").exists():
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    texts = [text for row in rows for text in (row.prompt, row.response) if text]
    # Often enough that the words of the guidelines and of the template are single tokens.
    texts += [*guidelines.every()] * 200 + ["Human Question: ", "Chatbot Response: "] * 100
    tokenizer = train_tokenizer(texts, VOCABULARY, TEMPLATE, CONTEXT, guidelines.openings())
    tokenizer.save_pretrained(folder)
    return tokenizer


def _model(vocabulary: int) -> Gemma2ForCausalLM:
    config = Gemma2Config(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=64,
        query_pre_attn_scalar=64,
        sliding_window=512,
        max_position_embeddings=CONTEXT,
    )
    model = Gemma2ForCausalLM(config)
    model.set_attn_implementation(PADDED)
    return model


def _stage(
    name: str, objective: Objective, schedule: Schedule, out: Path, progress: Progress
) -> None:
    task = progress.add_task(name, total=schedule.steps, loss=float("nan"))
    train(objective, schedule, out / f"{name}.pt", on_step=_shown(progress, task))
    progress.update(task, completed=schedule.steps)


def _counted(progress: Progress, name: str, total: int) -> Callable[[int], None]:
    task = progress.add_task(name, total=total, loss=float("nan"))
    return lambda done: progress.update(task, completed=done)


def _shown(progress: Progress, task: TaskID) -> Callable[[int, float], None]:
    return lambda step, loss: progress.update(task, completed=step + 1, loss=loss)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description:10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )


if __name__ == "__main__":
    typer.run(main)
