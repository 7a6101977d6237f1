"""Asks Azure's own client about texts, at a URL; a program for the Python that has it."""

import json
import sys
from typing import Any

from azure.ai.contentsafety import ContentSafetyClient
from azure.ai.contentsafety.models import AnalyzeTextOptions
from azure.core.credentials import AzureKeyCredential
from azure.core.exceptions import HttpResponseError

URL, *TEXTS = sys.argv[1:]
CLIENT = ContentSafetyClient(URL, AzureKeyCredential("sg-one"), retry_total=0)


def seen(text: str) -> Any:
    try:
        found = CLIENT.analyze_text(AnalyzeTextOptions(text=text))
    except HttpResponseError as failure:
        return [failure.status_code, failure.error.code if failure.error else None]
    return {c.category: c.severity for c in found.categories_analysis}


for each in TEXTS:
    sys.stdout.write(json.dumps(seen(each)) + "\n")
