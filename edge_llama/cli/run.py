"""``edge-llama run``: one answer."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from edge_llama.cli import options
from edge_llama.cli.console import ended, note, speed, stream
from edge_llama.errors import OptionError
from edge_llama.generation import Answer
from edge_llama.logprobs import TokenLogprobs
from edge_llama.messages import Message
from edge_llama.tokenizer import Tokenizer


def run(
    words: Annotated[list[str], typer.Argument(metavar="[MODEL] PROMPT", help="The prompt, or - for stdin.")],
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as it stands, without a chat template.")
    ] = False,
    system: options.System = None,
    tools: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A JSON list of tools that the model may call; calls are printed as JSON lines."
        ),
    ] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End the answer before this text. May be repeated.")] = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    frequency_penalty: options.FrequencyPenalty = None,
    presence_penalty: options.PresencePenalty = None,
    logit_bias: options.LogitBias = None,
    logprobs: options.Logprobs = None,
    json_schema: options.JsonSchema = None,
    regex: options.Regex = None,
    grammar: options.Grammar = None,
    seed: options.Seed = None,
    max_tokens: options.MaxTokens = None,
    n_ctx: options.NCtx = None,
    threads: options.Threads = None,
    flash_attn: options.FlashAttn = "off",
    chat_template: options.ChatTemplate = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Answer one prompt; the answer streams to stdout, and nothing else goes there.

    Example: edge-llama run llama-3.2-1b-q4_k_m.gguf "Why is the sky blue?" --max-tokens 200
    """
    if len(words) > 2:
        raise OptionError(f"{len(words)} arguments, expected [MODEL] PROMPT", remedy="put the prompt in quotes")
    model_name = words[0] if len(words) == 2 else None
    prompt = _read_stdin() if words[-1] == "-" else words[-1]
    params = options.given(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        logit_bias=options.biases(logit_bias) if logit_bias else None,
        logprobs=logprobs,
        json_schema=options.read_schema(json_schema) if json_schema else None,
        regex=regex,
        grammar=options.read_grammar(grammar) if grammar else None,
        seed=seed,
        max_tokens=max_tokens,
        stop=stop,
    )
    with options.open_model(model_name, n_ctx, threads, flash_attn, chat_template) as model:
        for option, value in (("--system", system), ("--tools", tools)):
            if raw and value is not None:
                raise OptionError(f"{option} has no place in a --raw prompt", remedy="leave one of them out")
        messages = ([Message("system", system)] if system is not None else []) + [Message("user", prompt)]
        described = _read_tools(tools) if tools else None
        generation = model.generate(prompt, **params) if raw else model.answer(messages, tools=described, **params)
        if not as_json:
            stream(generation)
        answer = generation.result()
        if as_json:
            print(json.dumps(_as_json(answer, model.tokenizer), ensure_ascii=False))  # noqa: T201
        else:
            for entry in answer.logprobs:
                note(_line(entry, model.tokenizer))
        for text in answer.notes:
            note(f"[{text}]")
        total = answer.timings.prompt_tokens + len(answer.tokens)
        if why := ended(answer.finish_reason, is_full=total >= model.n_ctx):
            note(f"[{why}]")
        if sys.stderr.isatty():
            note(speed(answer.timings), quiet=quiet)


def _as_json(answer: Answer, tokenizer: Tokenizer) -> dict[str, Any]:
    """The answer's fields; logprobs only if asked for, with texts of the tokens."""
    fields = asdict(answer)
    if not answer.logprobs:
        del fields["logprobs"]
    for entry in fields.get("logprobs", ()):
        for candidate in (entry, *entry["top"]):
            candidate["text"] = _text(candidate["token_id"], tokenizer)
    return fields


def _line(entry: TokenLogprobs, tokenizer: Tokenizer) -> str:
    """A token and the likeliest at its place."""
    top = "  ".join(f"{_label(other.token_id, tokenizer)} {other.logprob:.3f}" for other in entry.top)
    return f"{_label(entry.token_id, tokenizer):16} {entry.logprob:8.3f}  {top}".rstrip()


def _label(token: int, tokenizer: Tokenizer) -> str:
    text = _text(token, tokenizer)
    return repr(text) if text else f"token {token}"


def _text(token: int, tokenizer: Tokenizer) -> str:
    return tokenizer.piece(token).decode("utf-8", "backslashreplace")


def _read_tools(path: Path) -> list[dict[str, Any]]:
    where = f"--tools {path}"
    try:
        tools = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise OptionError(f"{where}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{where}: is no JSON: {error}") from error
    if not isinstance(tools, list):
        raise OptionError(f"{where}: is {type(tools).__name__}, expected a list of functions' JSON schemas")
    return tools


def _read_stdin() -> str:
    data = sys.stdin.buffer.read()
    if not data.strip():
        raise OptionError("stdin: the prompt is empty", remedy="pipe some text in")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise OptionError(f"stdin: byte {error.start:,} (0x{data[error.start]:02x}) is not UTF-8") from error
