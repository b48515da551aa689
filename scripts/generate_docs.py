"""Write the parts of docs/ that code knows better than people: channels, command lines, metrics."""

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from cloud_hub.cli import main as hub
from compile.cli import main as compiler
from edge_agent import metrics
from edge_agent.cli import main as edge
from sync.protocol import CHANNELS, MAX_PAYLOAD, ROOT

DOCS = Path(__file__).parent.parent / "docs"
NOTE = "<!-- Written by scripts/docs; do not edit. -->\n\n"


def channels() -> str:
    """The table of MQTT channels."""
    rows = [
        f"| {c.name} | `{ROOT}/{{device}}/{c.suffix}` | {c.direction} | "
        f"{f'`{c.message.__name__}`' if c.message else 'bytes'} | {c.qos} | "
        f"{'yes' if c.retain else 'no'} | {'yes' if c.signed else 'no, checked by digest'} |"
        for c in CHANNELS
    ]
    fields = [
        f"### {c.message.__name__}\n\n{' '.join((c.message.__doc__ or '').split())}\n\n"
        + "\n".join(f"- `{name}`" for name in c.message.model_fields)
        for c in CHANNELS
        if c.message
    ]
    return (
        f"{NOTE}# Channels\n\nMQTT 5 over mutual TLS 1.3; a payload has at most {MAX_PAYLOAD // 1024} KiB. "
        "Signed payloads are DSSE envelopes around the canonical JSON of the message.\n\n"
        "| channel | topic | direction | message | QoS | retained | signed |\n|---|---|---|---|---|---|---|\n"
        + "\n".join(rows)
        + "\n\n## Messages\n\n"
        + "\n\n".join(fields)
        + "\n"
    )


def commands(name: str, command: click.Command) -> Iterator[str]:
    """The help of a command and of everything below it."""
    context = click.Context(command, info_name=name)
    if isinstance(command, click.Group):
        for part in command.list_commands(context):
            found = command.get_command(context, part)
            if found is not None:
                yield from commands(f"{name} {part}", found)
    else:
        yield f"## `{name}`\n\n```text\n{command.get_help(context)}\n```\n"


def reference() -> str:
    """Every command line, as its own help says it."""
    tools: dict[str, click.Command] = {
        "outpost-compile": compiler,
        "outpost-edge": edge,
        "outpost-hub": hub,
    }
    pages = "\n".join(page for name, command in tools.items() for page in commands(name, command))
    return f"{NOTE}# Commands\n\nExit codes: 0 done, 1 failed, 2 wrong use, 3 refused.\n\n{pages}"


COUNTERPARTS: dict[metrics.Family, tuple[str, str]] = {
    metrics.REQUESTS: ("`http_requests_total`", ""),
    metrics.SUCCESS: ("`vllm:request_success_total`", ""),
    metrics.PROMPT: (
        "`vllm:prompt_tokens_total`",
        "`llamacpp:prompt_tokens_total` + `llamacpp:prompt_tokens_cached_total`",
    ),
    metrics.CACHED: ("`vllm:prompt_tokens_cached_total`", "`llamacpp:prompt_tokens_cached_total`"),
    metrics.GENERATED: ("`vllm:generation_tokens_total`", "`llamacpp:tokens_predicted_total`"),
    metrics.FIRST_TOKEN: ("`vllm:time_to_first_token_seconds`", ""),
    metrics.INTER_TOKEN: ("`vllm:inter_token_latency_seconds`", ""),
    metrics.LATENCY: ("`vllm:e2e_request_latency_seconds`", ""),
    metrics.RUNNING: ("`vllm:num_requests_running`", "`llamacpp:requests_processing`"),
    metrics.WAITING: ("`vllm:num_requests_waiting`", "`llamacpp:requests_deferred`"),
    metrics.KV_USAGE: ("`vllm:kv_cache_usage_perc`", ""),
}
"""What vLLM and llama-server (of llama-cpp-python 0.3.36's llama.cpp) call the same."""


def monitoring() -> str:
    """Every metric of a device, and what others call it."""
    rows = []
    for family in metrics.FAMILIES:
        vllm, llama_server = COUNTERPARTS.get(family, ("", ""))
        rows.append(f"| `{family.name}` | {family.kind} | {family.help} | {vllm} | {llama_server} |")
    return (
        f"{NOTE}# Metrics of a device\n\n`GET /metrics`, Prometheus' text format, from zero with each start. "
        "What vLLM counts too has vLLM's name after `outpost_`; the last two columns are what vLLM and "
        "llama-server call the same. Labels are models (`model_name`, as in vLLM), routes and statuses, "
        "never content. An engine that a base and its adapters share is under the base's name.\n\n"
        "| metric | kind | says | vLLM | llama-server |\n|---|---|---|---|---|\n" + "\n".join(rows) + "\n\n"
        "The hit rate of prefixes, in vLLM `prefix_cache_hits_total` / `prefix_cache_queries_total`, is "
        "`outpost_prompt_tokens_cached_total` / `outpost_prompt_tokens_total`. A text is what is sent at "
        "once, one token or a few. `outpost_request_success_total` has `served_by` (`edge`, `hub`) and no "
        "`finished_reason`.\n"
    )


PAGES = {"channels.md": channels, "commands.md": reference, "metrics.md": monitoring}


def main() -> int:
    """Write the pages, or with ``--check`` name those that differ."""
    stale = []
    for page, make in PAGES.items():
        path, text = DOCS / page, make()
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(page)
    if stale:
        print(f"out of date: {', '.join(stale)}; run scripts/docs", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
