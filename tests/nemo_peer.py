"""Asks the rail `hf_classifier` of NeMo Guardrails about texts; for the Python that has it."""

import json
import sys

from nemoguardrails import LLMRails, RailsConfig

URL, *TEXTS = sys.argv[1:]
CONFIG = """
models: []
rails:
  config:
    hf_classifier:
      guard: {{engine: {engine}, model: default, base_url: "{url}", blocked_labels: [test/threat]}}
  input:
    flows: ["hf classifier check input $classifier=guard"]
"""


def seen(engine: str, text: str) -> str:
    config = RailsConfig.from_content(yaml_content=CONFIG.format(engine=engine, url=URL))
    reply = LLMRails(config).generate(
        messages=[{"role": "user", "content": text}], options={"rails": ["input"]}
    )
    return str(reply.response[-1]["content"])


for each in TEXTS:
    sys.stdout.write(json.dumps([seen(engine, each) for engine in ("fms", "vllm")]) + "\n")
