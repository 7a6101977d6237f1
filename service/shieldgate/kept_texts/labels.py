"""Labels of kept texts, and who is being asked for them, in the same database."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from sqlalchemy import and_, delete, func, not_, or_, select, true, update

from shieldgate.errors import TextGone, TextTaken
from shieldgate.kept_texts.database import LABELLED, LABELS, TEXTS, Database

_READ_AT_ONCE = 200
_MOMENT = 60.0


class SealedLabels(NamedTuple):
    """The labels of a kept text, as the database has them."""

    id: str
    digest: str
    sealed: bytes


class Standing(NamedTuple):
    """How many texts there are, lack a label, have one, and are being asked of other reviewers."""

    kept: int
    unfinished: int
    labelled: int
    elsewhere: int


class LabelStore:
    """Keeps labels by the digests of texts; each method blocks, and raises StoreFailed.

    Who is asked about a text is alone with it for a while, in whatever process: the database
    decides between two who come for it. Each reviewer has one text at a time.
    """

    def __init__(self, database: Database) -> None:
        """Take the database of the texts."""
        self._database = database

    def take(self, digest: str, reviewer: str, now: float, until: float) -> bool:
        """Give a reviewer a text until then, in place of the last one; False where another has it.

        Labels that were read before may be out of date then.
        """
        with self._database.connected() as connection:
            free = LABELS.c.asked_until <= now
            taken = self._take(connection, digest, reviewer, until, or_(_of(reviewer), free))
            if taken:
                self._give_back(connection, and_(_of(reviewer), LABELS.c.digest != digest))
            return taken

    def give_back(self, reviewer: str) -> None:
        """Take from a reviewer what they have."""
        with self._database.connected() as connection:
            self._give_back(connection, _of(reviewer))

    def change(
        self,
        digest: str,
        reviewer: str,
        text: str,
        edit: Callable[[bytes | None], tuple[bytes | None, bool]],
        *,
        now: float,
        alone_until: float,
        keep_until: float,
    ) -> None:
        """Change the labels of what a reviewer was asked about, all or nothing.

        `edit` takes them, sealed, and gives them as they are to be, and whether that leaves the
        text of the id `text` unfinished. Raises TextTaken where somebody else was asked since, and
        TextGone where the text is no longer kept.
        """
        with self._database.connected() as connection:
            # Whoever deletes the text waits until it has its labels, or is here before.
            kept = select(TEXTS.c.id).where(TEXTS.c.id == text).with_for_update()
            if connection.execute(kept).first() is None:
                raise TextGone
            if not self._take(connection, digest, reviewer, alone_until, _of(reviewer)):
                raise TextTaken
            this = LABELS.c.digest == digest
            sealed, unfinished = edit(connection.scalar(select(LABELS.c.sealed).where(this)))
            answered, until = (None, None) if sealed is None else (now, keep_until)
            said = {"sealed": sealed, "answered": answered, "until": until}
            connection.execute(update(LABELS).where(this).values(said))
            same = LABELLED.c.digest == digest
            if sealed is None:
                connection.execute(delete(LABELLED).where(same))
                return
            # Other texts that say the same have these labels, too; what they lack is seen later.
            connection.execute(update(LABELLED).where(same).values(open=True))
            self._mark(connection, text, digest, unfinished)

    def mark(self, text: str, digest: str, *, unfinished: bool) -> None:
        """Note that the labels of a digest are those of a text, too."""
        with self._database.connected() as connection:
            self._mark(connection, text, digest, unfinished)

    def digest(self, text: str) -> str | None:
        """Give the digest of the labels that a text has."""
        with self._database.connected() as connection:
            query = select(LABELLED.c.digest).where(LABELLED.c.id == text)
            found: str | None = connection.scalar(query)
            return found

    def of(self, digest: str) -> bytes | None:
        """Give the sealed labels of a digest."""
        with self._database.connected() as connection:
            query = select(LABELS.c.sealed).where(LABELS.c.digest == digest)
            found: bytes | None = connection.scalar(query)
            return found

    def pages(self) -> Iterator[list[SealedLabels]]:
        """Read the labels of all texts that have some, in the order of ids, a few at a time."""
        after = ""
        columns = (LABELLED.c.id, LABELLED.c.digest, LABELS.c.sealed)
        query = (
            select(*columns)
            .join(LABELS, LABELS.c.digest == LABELLED.c.digest)
            .where(LABELS.c.sealed.is_not(None))
            .order_by(LABELLED.c.id)
            .limit(_READ_AT_ONCE)
        )
        while True:
            # Nothing stays open meanwhile: who reads may be slow.
            with self._database.connected() as connection:
                rows = connection.execute(query.where(LABELLED.c.id > after))
                page = [SealedLabels(*row) for row in rows]
            yield page
            if len(page) < _READ_AT_ONCE:
                return
            after = page[-1].id

    def standing(self, reviewer: str, now: float) -> Standing:
        """Count texts, and of them what is not finished, has labels, and is with others."""
        marked = select(LABELLED.c.id)
        finished = TEXTS.c.id.in_(marked.where(not_(LABELLED.c.open)))
        conditions = (
            (TEXTS, true()),
            (TEXTS, not_(finished)),
            (TEXTS, TEXTS.c.id.in_(marked)),
            (LABELS, and_(not_(_of(reviewer)), LABELS.c.asked_until > now)),
        )
        counts = [
            select(func.count()).select_from(table).where(where).scalar_subquery()
            for table, where in conditions
        ]
        with self._database.connected() as connection:
            return Standing(*connection.execute(select(*counts)).one())

    def expire(self, now: float, keep_seconds: float | None = None) -> None:
        """Delete labels that have expired, are older than that, or whose texts are all gone."""
        over = [LABELS.c.until <= now]
        if keep_seconds is not None:
            over.append(LABELS.c.answered <= now - keep_seconds)
        # What is being answered at this moment might seem to have no text.
        idle = or_(
            LABELS.c.answered <= now - _MOMENT,
            and_(LABELS.c.sealed.is_(None), LABELS.c.asked_until <= now),
        )
        no_text = LABELS.c.digest.not_in(select(LABELLED.c.digest))
        self._database.delete(
            (LABELLED, LABELLED.c.id.not_in(select(TEXTS.c.id))),
            (LABELS, or_(*over, and_(idle, no_text))),
            (LABELLED, LABELLED.c.digest.not_in(select(LABELS.c.digest))),
        )

    def _take(self, connection: Any, digest: str, reviewer: str, until: float, where: Any) -> bool:
        """Put a reviewer's name to a text, if it has none or `where` allows it, in one step."""
        taken = {"reviewer": reviewer, "asked_until": until}
        statement = (
            self._database.insert(LABELS)
            .values(digest=digest, **taken)
            .on_conflict_do_update(index_elements=["digest"], set_=taken, where=where)
        )
        # Else the driver's count of an INSERT is not kept.
        counted = statement.execution_options(preserve_rowcount=True)
        return bool(connection.execute(counted).rowcount)

    def _give_back(self, connection: Any, which: Any) -> None:
        connection.execute(update(LABELS).where(which).values(asked_until=0.0))

    def _mark(self, connection: Any, text: str, digest: str, unfinished: bool) -> None:
        marked = {"digest": digest, "open": unfinished}
        statement = self._database.insert(LABELLED).values(id=text, **marked)
        connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_=marked))


def _of(reviewer: str) -> Any:
    return LABELS.c.reviewer == reviewer
