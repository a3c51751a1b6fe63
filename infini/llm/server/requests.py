"""What clients send, as pydantic models: OpenAI's fields and ranges, vLLM's and llama.cpp's beside them.

Numbers and booleans are strict: `"0.5"` is no number. Unknown fields are allowed and ignored, because clients
send what other servers know. The published OpenAPI document is made from these models.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import (
    AllowInfNan,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    Strict,
    model_validator,
)

Integer = Annotated[int, Strict()]
Number = Annotated[float, Strict(), AllowInfNan(False)]
Flag = Annotated[bool, Strict()]
Text = Annotated[str, Strict()]
Json = dict[str, Any]  # Any: JSON of clients
TokenId = Annotated[int, Strict(), Field(ge=0, lt=1 << 31)]
_INT64 = 2**63
_MAX_ENTRIES: Final = 4096  # of an object whose values are looked at; `Limits` allows fewer
T = TypeVar("T")


class _FirstFault(FailFast):
    """Pydantic's, with a hash, which unions of types need."""

    __hash__ = object.__hash__


def _few(value: object) -> object:
    if isinstance(value, dict) and len(value) > _MAX_ENTRIES:
        raise ValueError(f"there are more than {_MAX_ENTRIES} entries")
    return value


# A body of millions of wrong items would become millions of errors: the first one of a list ends its reading,
# and objects with too many entries are not read.
Items = Annotated[list[T], _FirstFault()]
Entries = Annotated[dict[str, T], BeforeValidator(_few)]


class Body(BaseModel):
    """A JSON object; fields that nobody knows are kept aside."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


class StreamOptions(Body):
    """What a stream says about usage."""

    include_usage: Flag | None = None
    continuous_usage_stats: Flag | None = None


class JsonSchema(Body):
    """A schema with a name."""

    name: Text | None = None
    description: Text | None = None
    schema_: Json | Flag | None = Field(default=None, alias="schema")
    strict: Flag | None = None


class ResponseFormat(Body):
    """The form of an answer."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> ResponseFormat:
        if self.type == "json_schema" and (self.json_schema is None or self.json_schema.schema_ is None):
            raise ValueError("response_format of type json_schema needs json_schema.schema")
        return self


class StructuredOutputs(Body):
    """The form of an answer in vLLM's words; exactly one of the forms."""

    json_: Json | Text | Flag | None = Field(default=None, alias="json")
    regex: Text | None = None
    choice: Items[Text] | None = None
    grammar: Text | None = None
    json_object: Flag | None = None
    structural_tag: Text | None = None
    disable_any_whitespace: Flag | None = None


class Sampled(Body):
    """Fields of every call that makes tokens."""

    model: Text | None = None
    stream: Flag | None = None
    stream_options: StreamOptions | None = None
    temperature: Number | None = Field(default=None, ge=0.0, le=2.0)
    top_p: Number | None = Field(default=None, gt=0.0, le=1.0)
    top_k: Integer | None = Field(default=None, ge=-1, lt=_INT64)
    min_p: Number | None = Field(default=None, ge=0.0, le=1.0)
    typical_p: Number | None = Field(default=None, gt=0.0, le=1.0)
    presence_penalty: Number | None = Field(default=None, ge=-2.0, le=2.0)
    frequency_penalty: Number | None = Field(default=None, ge=-2.0, le=2.0)
    repetition_penalty: Number | None = Field(default=None, gt=0.0)
    seed: Integer | None = Field(default=None, ge=-_INT64, lt=_INT64)
    n: Integer | None = Field(default=None, ge=1, lt=_INT64)
    max_tokens: Integer | None = Field(default=None, ge=1, lt=_INT64)
    min_tokens: Integer | None = Field(default=None, ge=0, lt=_INT64)
    stop: Text | Items[Text] | None = None
    stop_token_ids: Items[TokenId] | None = None
    ignore_eos: Flag | None = None
    include_stop_str_in_output: Flag | None = None
    skip_special_tokens: Flag | None = None
    logit_bias: Entries[Number] | None = None
    allowed_token_ids: Items[TokenId] | None = None
    bad_words: Items[Text] | None = None
    prompt_logprobs: Integer | None = Field(default=None, ge=0, lt=_INT64)
    structured_outputs: StructuredOutputs | None = None
    guided_json: Json | Text | Flag | None = None
    guided_regex: Text | None = None
    guided_choice: Items[Text] | None = None
    guided_grammar: Text | None = None
    response_format: ResponseFormat | None = None
    priority: Integer = Field(default=0, ge=-_INT64, lt=_INT64)
    cache_salt: Text | None = Field(default=None, min_length=1, max_length=128, pattern=r"^[^@/\\\x00]*$")
    timings_per_token: Flag | None = None
    return_token_ids: Flag | None = None
    user: Text | None = None
    metadata: Entries[Annotated[str, Strict(), Field(max_length=512)]] | None = Field(
        default=None, max_length=16
    )
    store: Flag | None = None
    service_tier: Text | None = None

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> Sampled:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options may be given only with stream=true")
        if self.prompt_logprobs is not None and self.stream:
            raise ValueError("prompt_logprobs are not offered in a stream")
        if self.metadata is not None and any(len(name) > 64 for name in self.metadata):
            raise ValueError("names of metadata have at most 64 characters")
        return self


class Function(Body):
    """A function that a model may call."""

    name: Text = Field(min_length=1, max_length=256)
    description: Text | None = None
    parameters: Json | None = None
    strict: Flag | None = None


class Tool(Body):
    """A tool: a function."""

    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    """The name of a function."""

    name: Text


class NamedTool(Body):
    """The one tool that is to be called."""

    type: Literal["function"] = "function"
    function: NamedFunction


class CalledFunction(Body):
    """A call that a model made."""

    name: Text
    arguments: Text | Json | None = None


class ToolCall(Body):
    """A call with its number."""

    id: Text | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class Part(Body):
    """A part of a message. Only text is served."""

    type: Text
    text: Text | None = None


class Message(Body):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Items[Part] | None = None
    name: Text | None = None
    tool_calls: Items[ToolCall] | None = None
    tool_call_id: Text | None = None
    reasoning: Text | None = None
    reasoning_content: Text | None = None


class Templated(Body):
    """Fields that decide how messages become a prompt."""

    messages: Items[Message] = Field(min_length=1)
    tools: Items[Tool] | None = Field(default=None, min_length=1)
    add_generation_prompt: Flag = True
    continue_final_message: Flag = False
    add_special_tokens: Flag = False
    chat_template: Text | None = None
    chat_template_kwargs: Json | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None

    @model_validator(mode="after")
    def _one_ending(self) -> Templated:
        if (
            self.continue_final_message
            and self.add_generation_prompt
            and "add_generation_prompt" in self.model_fields_set
        ):
            raise ValueError("continue_final_message and add_generation_prompt exclude each other")
        return self


class ChatRequest(Sampled, Templated):
    """The body of /v1/chat/completions."""

    max_completion_tokens: Integer | None = Field(default=None, ge=1, lt=_INT64)
    logprobs: Flag | None = None
    top_logprobs: Integer | None = Field(default=None, ge=0, lt=_INT64)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: Flag | None = None

    @model_validator(mode="after")
    def _goes_together(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs need logprobs=true")
        if self.tool_choice not in (None, "none") and not self.tools:
            raise ValueError("tool_choice needs tools")
        if isinstance(self.tool_choice, NamedTool):
            name = self.tool_choice.function.name
            if all(tool.function.name != name for tool in self.tools or ()):
                raise ValueError("tool_choice names a function that is not among the tools")
        return self


class CompletionRequest(Sampled):
    """The body of /v1/completions."""

    prompt: Text | Items[TokenId] | Items[Text] | Items[Items[TokenId]]
    max_tokens: Integer | None = Field(default=None, ge=0, lt=_INT64)
    logprobs: Integer | None = Field(default=None, ge=0, lt=_INT64)
    echo: Flag | None = None
    suffix: Text | None = None
    best_of: Integer | None = Field(default=None, ge=1, lt=_INT64)
    add_special_tokens: Flag = True

    @model_validator(mode="after")
    def _is_offered(self) -> CompletionRequest:
        if self.suffix:
            raise ValueError("suffix is not offered")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of is not offered")
        return self


class TokenizeRequest(Body):
    """The body of /tokenize: a prompt, messages, or llama.cpp's content."""

    model: Text | None = None
    prompt: Text | None = None
    content: Text | None = None
    messages: Items[Message] | None = Field(default=None, min_length=1)
    tools: Items[Tool] | None = Field(default=None, min_length=1)
    add_generation_prompt: Flag = True
    continue_final_message: Flag = False
    add_special_tokens: Flag | None = None
    return_token_strs: Flag | None = None
    chat_template: Text | None = None
    chat_template_kwargs: Json | None = None
    reasoning_effort: Text | None = None

    @model_validator(mode="after")
    def _has_one_text(self) -> TokenizeRequest:
        if sum(given is not None for given in (self.prompt, self.content, self.messages)) != 1:
            raise ValueError("give exactly one of prompt, messages and content")
        return self


class DetokenizeRequest(Body):
    """The body of /detokenize."""

    model: Text | None = None
    tokens: Items[TokenId]


class EmbeddingsRequest(Body):
    """The body of /v1/embeddings, which is not served yet."""


class TextFormat(Body):
    """The form of a response."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: Text | None = None
    schema_: Json | Flag | None = Field(default=None, alias="schema")
    strict: Flag | None = None


class TextOptions(Body):
    """Options of a response's text."""

    format: TextFormat | None = None


class ReasoningOptions(Body):
    """Options of a response's reasoning."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None


class ResponseTool(Body):
    """A tool of a response: a function, its fields beside its type."""

    type: Text
    name: Text | None = Field(default=None, min_length=1, max_length=256)
    description: Text | None = None
    parameters: Json | None = None
    strict: Flag | None = None


class NamedResponseTool(Body):
    """The one function that a response is to call."""

    type: Literal["function"]
    name: Text


class ResponseItem(Body):
    """A message, a call of a function, or its result."""

    type: Text = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Text | Items[Part] | None = None
    call_id: Text | None = None
    name: Text | None = None
    arguments: Text | None = None
    output: Text | Items[Part] | None = None
    summary: Items[Part] | None = None


class ResponsesRequest(Body):
    """The body of /v1/responses."""

    model: Text | None = None
    input: Text | Items[ResponseItem] = Field(min_length=1)
    instructions: Text | None = None
    max_output_tokens: Integer | None = Field(default=None, ge=1, lt=_INT64)
    temperature: Number | None = Field(default=None, ge=0.0, le=2.0)
    top_p: Number | None = Field(default=None, gt=0.0, le=1.0)
    top_logprobs: Integer | None = Field(default=None, ge=0, lt=_INT64)
    include: Items[Text] | None = None
    tools: Items[ResponseTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedResponseTool | None = None
    parallel_tool_calls: Flag | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    previous_response_id: Text | None = None
    conversation: Any = None  # Any: refused whatever it is
    store: Flag | None = None
    background: Flag | None = None
    stream: Flag | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: Entries[Annotated[str, Strict(), Field(max_length=512)]] | None = Field(
        default=None, max_length=16
    )
    user: Text | None = None
    service_tier: Text | None = None
    seed: Integer | None = Field(default=None, ge=-_INT64, lt=_INT64)
    top_k: Integer | None = Field(default=None, ge=-1, lt=_INT64)
    min_p: Number | None = Field(default=None, ge=0.0, le=1.0)
    repetition_penalty: Number | None = Field(default=None, gt=0.0)
