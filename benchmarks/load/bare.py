"""The bare framework answering what shieldgate answers: what a moderation can't cost less than."""

import os
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Response

ANSWER = Path(os.environ["LOAD_ANSWER"]).read_bytes()

app = FastAPI()


@app.post("/v1/moderations")
async def moderations(body: dict[str, Any]) -> Response:
    """Parse the body, and answer the same bytes each time."""
    return Response(ANSWER, media_type="application/json")
