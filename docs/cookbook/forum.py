"""A small forum whose posts wait for a moderator where the guard flags them.

`uvicorn forum:app` serves it. Posts are in the file `forum.db`.
"""

import sqlite3

import openai
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

app = FastAPI()
guard = openai.AsyncOpenAI()  # where it is, and its key, say OPENAI_BASE_URL and OPENAI_API_KEY
posts = sqlite3.connect("forum.db", isolation_level=None)
posts.row_factory = sqlite3.Row
posts.execute("CREATE TABLE IF NOT EXISTS posts (id INTEGER PRIMARY KEY, author, text, state, why)")


class Post(BaseModel):
    """What somebody wrote."""

    author: str
    text: str


class Decision(BaseModel):
    """What a moderator says of a post that is held."""

    publish: bool


async def judged(text: str) -> tuple[str, str]:
    """Say whether a text is published or held, and why."""
    try:
        [result] = (await guard.moderations.create(input=text)).results
    except openai.OpenAIError:
        return "held", "could not be judged"  # the forum stays up, and nothing goes out unseen
    flagged = [name for name, is_flagged in result.categories.to_dict().items() if is_flagged]
    return ("held", ", ".join(flagged)) if result.flagged else ("published", "")


@app.post("/posts", status_code=201)
async def write(post: Post) -> dict[str, object]:
    """Publish a post, or hold it for a moderator."""
    state, why = await judged(post.text)
    row = (post.author, post.text, state, why)
    insert = "INSERT INTO posts (author, text, state, why) VALUES (?, ?, ?, ?)"
    return {"id": posts.execute(insert, row).lastrowid, "state": state}


@app.get("/posts")
async def read(state: str = "published") -> list[dict[str, object]]:
    """List the posts that everybody sees; `state=held` lists what waits for a moderator."""
    return [dict(p) for p in posts.execute("SELECT * FROM posts WHERE state = ?", (state,))]


@app.post("/posts/{number}/decision")
async def decide(number: int, decision: Decision) -> dict[str, object]:
    """Publish or remove a post that is held."""
    state = "published" if decision.publish else "removed"
    update = "UPDATE posts SET state = ? WHERE id = ? AND state = 'held'"
    if not posts.execute(update, (state, number)).rowcount:
        raise HTTPException(404, "No such post is held.")
    return {"id": number, "state": state}
