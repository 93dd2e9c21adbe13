"""What clients of the OpenAI protocol send and get: requests checked by pydantic, errors and replies as they expect.

What would change an answer and is not offered (several choices, penalties) is refused by name; fields that only
describe a request (user, metadata, store) are let pass. Our one addition to a chat request is `table`, the id of
an uploaded table: the server then runs the model's code itself.
"""

from __future__ import annotations

import json
import time
import uuid
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import JSONResponse

from herd.console import HerdError
from herd.model.generation import Sampling
from herd.model.grammars import checked, json_schema, json_value, regex

MAX_MESSAGES = 256
MAX_PROMPTS = 64
MAX_GRAMMAR_CHARACTERS = 200_000
PYTHON = "python"  # the name by which the code interpreter is offered and called
Count = Annotated[int, Field(ge=1)]
Body = TypeVar("Body", bound=BaseModel)


class RequestError(Exception):
    """A request that is answered with an error in OpenAI's form. `param` names the field at fault."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self, headers: dict[str, str] | None = None) -> JSONResponse:
        return JSONResponse(self.body(), self.status, headers)


class _Request(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=False)


class _Sampled(_Request):
    """What chat and plain completions share."""

    model: str
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: str | list[str] | None = None
    n: Literal[1] | None = 1
    presence_penalty: Literal[0] | None = 0
    frequency_penalty: Literal[0] | None = 0
    logit_bias: dict[str, Literal[0]] | None = None

    @property
    def usage_wanted(self) -> bool:
        return bool((self.stream_options or {}).get("include_usage"))

    def sampling(self, default: Sampling, max_tokens: int, grammar: str | None) -> Sampling:
        """How to draw: what the request says, else `default`. Raises RequestError for more tokens than `max_tokens`."""
        asked = self.asked_tokens()
        if asked is not None and asked > max_tokens:
            raise RequestError(400, f"max_tokens is {asked}; this server allows up to {max_tokens}", "max_tokens")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if len(stop) > 4 or not all(stop):
            raise RequestError(400, "stop must be one to four strings that are not empty", "stop")
        return Sampling(
            temperature=default.temperature if self.temperature is None else self.temperature,
            top_p=default.top_p if self.top_p is None else self.top_p,
            max_tokens=asked or min(default.max_tokens, max_tokens),
            seed=self.seed or 0,
            stop=stop,
            grammar=grammar,
        )

    def asked_tokens(self) -> int | None:
        return self.max_tokens


class Function(_Request):
    """With `strict`, parameters that no grammar can say are an error; without, arguments are then any object."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Request):
    type: Literal["function"]
    function: Function


class JsonSchema(_Request):
    name: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class ResponseFormat(_Request):
    """What the words of an answer are: text, some JSON object, or JSON of a schema, which is followed to the letter."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def expression(self) -> str | None:
        """The grammar's expression, None for text. Raises RequestError for a schema that no grammar can say."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return json_value({"type": "object"})
        if self.json_schema is None:
            raise RequestError(400, "type json_schema needs a json_schema", "response_format.json_schema")
        try:
            return json_value(self.json_schema.schema_)
        except HerdError as error:
            raise RequestError(400, str(error), "response_format.json_schema.schema") from None


class ChatRequest(_Sampled):
    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Count | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["auto", "none", "required"] | Tool | None = None
    response_format: ResponseFormat | None = None
    logprobs: Literal[False] | None = None
    table: str | None = None

    def asked_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def functions(self) -> list[Function]:
        """The functions that may be called in this turn."""
        return [] if self.tool_choice == "none" else [tool.function for tool in self.tools or ()]


class StructuredOutputs(_Request):
    """One of these: a JSON schema (as an object or as text), a regular expression, llguidance's Lark syntax.

    vLLM's other kinds are not offered.
    """

    model_config = ConfigDict(extra="forbid")
    json_: Annotated[dict[str, Any] | str | None, Field(alias="json")] = None
    regex: str | None = None
    grammar: str | None = None

    def lark(self) -> str:
        """The grammar. Raises RequestError for none, for several, and for one that is wrong."""
        kinds = {"json": self.json_, "regex": self.regex, "grammar": self.grammar}
        given = [kind for kind, value in kinds.items() if value is not None]
        if len(given) != 1:
            raise RequestError(400, "give one of json, regex and grammar", "structured_outputs")
        (kind,) = given
        try:
            if self.regex is not None:
                found = regex(self.regex)
            elif self.grammar is not None:
                found = checked(self.grammar)
            else:
                found = json_schema(json.loads(self.json_) if isinstance(self.json_, str) else self.json_ or {})
        except (HerdError, ValueError) as error:
            raise RequestError(400, str(error), f"structured_outputs.{kind}") from None
        if len(found) > MAX_GRAMMAR_CHARACTERS:
            problem = f"it is longer than {MAX_GRAMMAR_CHARACTERS} characters"
            raise RequestError(400, problem, f"structured_outputs.{kind}")
        return found


class CompletionRequest(_Sampled):
    """`prompt`: texts, or token ids. vLLM's `return_token_ids` gives each choice its `token_ids`."""

    prompt: str | list[int] | Annotated[list[str] | list[list[int]], Field(min_length=1, max_length=MAX_PROMPTS)]
    logprobs: Annotated[int, Field(ge=0, le=1)] | None = None
    echo: Literal[False] | None = None
    top_k: Annotated[int, Field(ge=-1)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] = 1.0
    return_token_ids: bool = False
    stop_token_ids: Annotated[list[int], Field(max_length=64)] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=0)] | None = None
    structured_outputs: StructuredOutputs | None = None


class Question(_Request):
    table: str
    question: Annotated[str, Field(min_length=1, max_length=8000)]


def parse_body(model: type[Body], data: bytes) -> Body:
    """A checked request. Raises RequestError naming the field."""
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("function-", "constrained-")))
        raise RequestError(400, f"{where or 'body'}: {first['msg']}", where or None) from None


def identifier(kind: str) -> str:
    """A fresh id such as chatcmpl-..., which says nothing but its kind."""
    return f"{kind}-{uuid.uuid4().hex}"


def usage(prompt_tokens: int, tokens: int) -> dict[str, int]:
    return {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens}


def chat_chunk(
    head: dict[str, Any], delta: dict[str, Any], finish: str | None = None, extra: dict[str, Any] | None = None
) -> dict[str, Any]:
    """One event of a streamed chat reply."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
    return {**head, "object": "chat.completion.chunk", "choices": [choice], **(extra or {})}


def head(kind: str, model: str) -> dict[str, Any]:
    """What every chunk of one reply begins with."""
    return {"id": identifier(kind), "created": int(time.time()), "model": model}


def call_json(name: str, arguments: str, number: int) -> dict[str, Any]:
    """One call of a streamed message, under a fresh id."""
    function = {"name": name, "arguments": arguments}
    return {"index": number, "id": identifier("call"), "type": "function", "function": function}


def sse(value: dict[str, Any] | str) -> str:
    """One server-sent event."""
    return f"data: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}\n\n"
