"""Which of llama.cpp's server tests cannot be asked of an agent, and why; which ask only for a shape.

A key of ``SKIPPED`` is the beginning of ``test_file.py::test_name[parameters]``, the longest one counts. What
is in neither table must pass as it is written.
"""

from typing import Final


class _AnyNumber(int):
    """Equals every whole number above 0."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, int) and other > 0

    __hash__ = int.__hash__


ANY_NUMBER: Final = _AnyNumber(1)
ANY_TEXT: Final = "."
"""A pattern that every text but the empty one matches."""

STORIES = ("(Suddenly)+", "(going|bed)+")
"""What the stories model says; of ours it is asked that it says something."""

SHAPES = {
    "test_chat_completion.py::test_chat_completion": ("re_content", "n_prompt"),
    "test_chat_completion.py::test_chat_completion_stream": ("re_content", "n_prompt"),
    "test_completion.py::test_completion": ("re_content", "n_prompt"),
}
"""Parameters of tests that hold words and token counts of the stories model."""

ROUTE = "a route of llama-server's own"
OPTION = "an option of llama-server's own, which an agent refuses by name"
FIELD = "looks at a field of llama-server's own"
BUILD = "looks for llama-server's build number in system_fingerprint, which OpenAI leaves open"
STORY = "counts tokens of the stories model"
CONTEXT = "fills a context of 128 to 512 tokens; the agent keeps its 2,048"
TEMPLATE = "gives the server another chat template; an agent takes the model's, or its release's"
NO_MODEL = "needs a model that can only be had from a hub"
CORS = "lets web pages of other sites in; an agent answers 403 to them (tests/edge/test_serving_calls.py)"
FORM = "an answer in a form other than OpenAI's, or Jina's"

SLOW = "marked slow by its authors: real models of 1 to 8 GB from a hub"

SKIPPED: dict[str, str] = {
    "test_basic.py::test_load_split_model": NO_MODEL,
    "test_basic.py::test_no_ui": "llama-server's own web page",
    "test_basic.py::test_server_model_aliases_and_tags": "aliases and tags are llama-server's own",
    "test_basic.py::test_server_multiple_addresses": "an agent listens at one address",
    "test_basic.py::test_server_props": ROUTE,
    "test_basic.py::test_server_slots": ROUTE,
    "test_chat_completion.py::test_apply_chat_template": ROUTE,
    "test_chat_completion.py::test_chat_completion_cached_tokens": STORY,
    "test_chat_completion.py::test_chat_completion_with_openai_library": BUILD,
    "test_chat_completion.py::test_chat_completion_with_timings_per_token": OPTION,
    "test_chat_completion.py::test_chat_completions_token_count": ROUTE,
    "test_chat_completion.py::test_chat_template": TEMPLATE,
    "test_chat_completion.py::test_completion_with_grammar": OPTION,
    "test_chat_completion.py::test_completion_with_json_schema": OPTION,
    "test_chat_completion.py::test_completion_with_response_format[response_format0-": OPTION,
    "test_chat_completion.py::test_completion_with_response_format[response_format1-": OPTION,
    "test_chat_completion.py::test_context_size_exceeded": FIELD,
    "test_chat_completion.py::test_invalid_chat_completion_req[messages7]": (
        "refuses two answers in a row at the end, which OpenAI takes"
    ),
    "test_chat_completion.py::test_logit_bias": ROUTE,
    "test_chat_completion.py::test_logprobs_stream": (
        "wants null as the first delta's content, where OpenAI sends an empty text"
    ),
    "test_chat_completion.py::test_return_progress": OPTION,
    "test_chat_completion.py::test_verbose_debug": OPTION,
    "test_compat_anthropic.py": "Anthropic's API",
    "test_compat_gcp.py": "Google Cloud's form of requests",
    "test_compat_oai_responses.py::test_responses_stream_with_llama_telemetry": OPTION,
    "test_completion.py::test_cancel_request": ROUTE,
    "test_completion.py::test_completion[Write a joke": FIELD,
    "test_completion.py::test_completion_prompt_cache": STORY,
    "test_completion.py::test_completion_response_fields": OPTION,
    "test_completion.py::test_completion_stream[": FIELD,
    "test_completion.py::test_completion_with_openai_library": BUILD,
    "test_completion.py::test_completion_with_tokens_input": ROUTE,
    "test_completion.py::test_json_prompt": OPTION,
    "test_completion.py::test_logit_bias": ROUTE,
    "test_completion.py::test_n_probs": OPTION,
    "test_completion.py::test_nocache_long_input_prompt": CONTEXT,
    "test_ctx_shift.py::test_ctx_shift_disabled_long_prompt": CONTEXT,
    "test_ctx_shift.py::test_ctx_shift_disabled_short_prompt[-1-": CONTEXT,
    "test_ctx_shift.py::test_ctx_shift_disabled_stream": OPTION,
    "test_ctx_shift.py::test_ctx_shift_enabled": "an agent never drops the beginning of a text silently",
    "test_embedding.py::test_embedding_content_text_same_as_string": FORM,
    "test_embedding.py::test_embedding_error_prompt_too_long": (
        "looks for words in a message; an agent's code is context_length_exceeded"
    ),
    "test_embedding.py::test_embedding_mixed_input[-": "an empty text, which OpenAI refuses too",
    "test_embedding.py::test_embedding_mixed_input[input2-": "token ids, which only text models take",
    "test_embedding.py::test_embedding_mixed_input[input3-": FORM,
    "test_embedding.py::test_embedding_mixed_input[input5-": FORM,
    "test_embedding.py::test_embedding_mixed_input[input6-": "token ids, which only text models take",
    "test_embedding.py::test_embedding_mixed_input[input7-": FORM,
    "test_embedding.py::test_embedding_mixed_input[input8-": FORM,
    "test_embedding.py::test_embedding_mixed_input[input9-": FORM,
    "test_embedding.py::test_embedding_mixed_input[input10-": FORM,
    "test_embedding.py::test_embedding_multiple_with_fa": "253 to 256 words; the model here reads 256 tokens",
    "test_embedding.py::test_embedding_pooling_none": "how texts are pooled says the model, not the server",
    "test_ignore_eos.py": FIELD,
    "test_infill.py": ROUTE,
    "test_kv_keep_only_active.py": "moves idle prompts to host memory by a route of llama-server's own",
    "test_lora.py": "scales of adapters for each request; an agent's adapter is part of the model's name",
    "test_mcp_servers.py": "tools run by the server",
    "test_metrics.py": "llama-server's names and fields; ours are in metrics.md",
    "test_proxy.py": "a proxy for web pages",
    "test_rerank.py::test_rerank_tei": FORM,
    "test_rerank.py::test_rerank_usage": STORY,
    "test_router.py": "loads, unloads and downloads models through routes of llama-server's own",
    "test_security.py::test_access_static_assets_without_api_key": "llama-server's own web page",
    "test_security.py::test_correct_api_key_anthropic_header": "Anthropic's API",
    "test_security.py::test_cors": CORS,
    "test_security.py::test_local_media_file": NO_MODEL,
    "test_security.py::test_openai_library_correct_api_key": "asks OpenAI's routes without /v1",
    "test_sleep.py": ROUTE,
    "test_slot_save.py": ROUTE,
    "test_speculative.py": "speculative decoding, which an agent does not do",
    "test_stream.py": "goes on with a stream that was left, through a route of llama-server's own",
    "test_template.py": TEMPLATE,
    "test_tokenize.py": ROUTE,
    "test_tool_call.py::test_completion_without_tool_call_slow": TEMPLATE,
    "test_tools_builtin.py": "tools run by the server",
    "test_vision_api.py": NO_MODEL,
}


def skip_reason(case: str) -> str | None:
    """Why a test is not asked of an agent; None: it is."""
    found = [key for key in SKIPPED if case.startswith(key)]
    return SKIPPED[max(found, key=len)] if found else None
