"""How errors look to other gateways, and how they show a key."""

from typing import Any

from pydantic import BaseModel

from shieldgate.dialects.interface import Credential, Problem
from shieldgate.dialects.openai import CREDENTIALS


class DetectorError(BaseModel):
    """An error of a detector."""

    code: int
    message: str


class Detectors:
    """The detectors of FMS."""

    credentials: tuple[Credential, ...] = CREDENTIALS
    error_model: type[BaseModel] = DetectorError
    request_id = "x-request-id"

    def status(self, problem: Problem) -> int:
        """Call a request that is wrong 422, as the contract does."""
        return 422 if problem.status == 400 else problem.status

    def error(self, problem: Problem) -> dict[str, Any]:
        """Write the status again, and what is wrong."""
        return {"code": self.status(problem), "message": problem.message}


class AzureErrorBody(BaseModel):
    """What is wrong; `target` names the field."""

    code: str
    message: str
    target: str | None = None


class AzureError(BaseModel):
    """An error of an Azure AI service."""

    error: AzureErrorBody


_AZURE_CODES = {
    400: "InvalidRequestBody",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    408: "RequestTimeout",
    413: "InvalidRequestBody",
    415: "InvalidRequestBody",
    429: "TooManyRequests",
    503: "ServiceUnavailable",
}


class Azure:
    """Azure AI Content Safety."""

    credentials: tuple[Credential, ...] = (Credential("ocp-apim-subscription-key"), *CREDENTIALS)
    error_model: type[BaseModel] = AzureError
    request_id = "apim-request-id"

    def status(self, problem: Problem) -> int:
        """Take the status as it is."""
        return problem.status

    def error(self, problem: Problem) -> dict[str, Any]:
        """Write a code of theirs, and what is wrong."""
        code = _AZURE_CODES.get(problem.status, "InternalServerError")
        body = AzureErrorBody(code=code, message=problem.message, target=problem.param)
        return AzureError(error=body).model_dump()


class WebhookData(BaseModel):
    """Why the verdict is what it is; `error` where nothing was judged."""

    violated: list[str] = []
    reason: str | None = None
    error: str | None = None


class WebhookReply(BaseModel):
    """What Portkey is told; false stops it, where the guardrail denies."""

    verdict: bool
    data: WebhookData


class Portkey:
    """Portkey's webhook, which passes what is answered with an error."""

    credentials: tuple[Credential, ...] = CREDENTIALS
    error_model: type[BaseModel] = WebhookReply
    request_id = "x-request-id"

    def status(self, problem: Problem) -> int:
        """Never tell an error by the status."""
        return 200

    def error(self, problem: Problem) -> dict[str, Any]:
        """Stop what was not judged."""
        return WebhookReply(verdict=False, data=WebhookData(error=problem.message)).model_dump()
