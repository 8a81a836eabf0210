"""``edge-llama run``: one answer."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from edge_llama.cli import options
from edge_llama.cli.chat_session import adapter_texts
from edge_llama.cli.chat_session.documents import Retrieval, tell_cost, tell_passages
from edge_llama.cli.terminal.console import Plain, ended, logprob_lines, note, speed, stream, token_text
from edge_llama.cli.terminal.standard_input import before_prompt, context_of_stdin, prompt_of_stdin
from edge_llama.errors import OptionError
from edge_llama.generation import Answer
from edge_llama.host.regular_files import text_of
from edge_llama.media.documents.document import open_documents
from edge_llama.planning.options import OpenOptions
from edge_llama.prompts.tokenizer import Tokenizer


@options.with_sampling
@options.with_opening(also_remote=True)
def run(
    *,
    params: dict[str, Any],
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL] PROMPT", help="The prompt; what is piped in stands before it. - takes it from stdin."
        ),
    ],
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
    image: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A picture before the prompt. May be repeated: in this order."),
    ] = None,
    video: Annotated[
        Path | None, typer.Option(metavar="CLIP", help="A clip before the prompt: frames of it, with their times.")
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A document before the prompt: text, code, CSV, HTML, PDF, docx. May be repeated: in this order.",
        ),
    ] = None,
    retrieve: options.Retrieve = False,
    embedding_model: options.EmbeddingModel = None,
    opening: OpenOptions,
    adapter: options.Adapter = None,
    isolate: options.Isolate = False,
    hide_thinking: options.HideThinking = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Answer one prompt; the answer streams to stdout, and nothing else goes there.

    Example: edge-llama run llama-3.2-1b-q4_k_m.gguf "Why is the sky blue?" --max-tokens 200

    With a picture: edge-llama run llama4-scout/ "What is this?" --image photo.jpg

    About a text: cat notes.txt | edge-llama run "Summarise this in one sentence."

    About a document: edge-llama run "Who wrote this?" --file letter.pdf

    With an adapter: edge-llama run llama-3.2-1b-q8_0.gguf "What is a lien?" --adapter legal.gguf

    On a server: edge-llama run http://127.0.0.1:8000/v1 "Hello" --tokenizer llama-3.2-1b/
    """
    opening, params = _with_adapters(adapter, opening, params)
    if len(words) > 2:
        raise OptionError(f"{len(words)} arguments, expected [MODEL] PROMPT", remedy="put the prompt in quotes")
    model_name = words[0] if len(words) == 2 else None
    if raw:
        _check_raw({"--system": system, "--tools": tools, "--image": image, "--video": video, "--file": file})
    _check_retrieval(retrieve=retrieve, embedding_model=embedding_model)
    prompt = _prompt(words[-1], raw=raw, quiet=quiet)
    documents = open_documents(file or ())
    with (
        options.open_model(model_name, opening, isolate=isolate, verbose=verbose, also_remote=True) as model,
        Retrieval(options.open_embedding_model, embedding_model, is_on=retrieve) as retrieval,
    ):
        described = _read_tools(tools) if tools else None
        chat = None
        if raw:
            generation = model.generate(prompt, **params)
        else:
            chat = model.chat(system=system, tools=described)
            tell_cost(chat, documents, quiet=quiet)
            generation = chat.send(
                prompt,
                images=image or (),
                video=video,
                files=documents,
                retrieve=retrieve,
                embedding_model=retrieval.embedder(documents),
                **params,
            )
            tell_passages(chat, documents)
            if video:
                note(f"{video}: {chat.frames_shown:,} frames of it are shown", quiet=quiet)
        if not as_json:
            stream(generation, Plain(), hide_thinking=hide_thinking or quiet)
        answer = generation.result()
        if as_json:
            used = {"passages": [asdict(passage) for passage in chat.passages]} if chat and chat.passages else {}
            print(json.dumps({**_as_json(answer, model.tokenizer), **used}, ensure_ascii=False))  # noqa: T201
        else:
            for line in logprob_lines(answer, model.tokenizer):
                note(line)
        for text in answer.notes:
            note(f"[{text}]")
        if why := ended(answer, n_ctx=model.n_ctx):
            note(f"[{why}]")
        if sys.stderr.isatty():
            note(speed(answer.timings), quiet=quiet)


def _prompt(word: str, *, raw: bool, quiet: bool) -> str:
    """The prompt, which ``-`` has come from stdin; else what is piped in stands before it."""
    if word == "-":
        return prompt_of_stdin()
    return before_prompt(context_of_stdin(quiet=quiet), word, raw=raw)


def _with_adapters(
    texts: list[str] | None, opening: OpenOptions, params: dict[str, Any]
) -> tuple[OpenOptions, dict[str, Any]]:
    """The options to open the model with, and those of the answer, which uses all adapters."""
    files, weights = adapter_texts.parse(texts)
    return ({**opening, "adapters": files}, {**params, "adapters": weights}) if files else (opening, params)


def _check_raw(options: Mapping[str, object]) -> None:
    """OptionError if one was given that a prompt without a template has no place for."""
    for option, value in options.items():
        if value is not None:
            raise OptionError(f"{option} has no place in a --raw prompt", remedy="leave one of them out")


def _check_retrieval(*, retrieve: bool, embedding_model: str | None) -> None:
    """OptionError for a model without anything to do."""
    if embedding_model and not retrieve:
        raise OptionError("--embedding-model finds passages of files", remedy="add --retrieve, or leave it out")


def _as_json(answer: Answer, tokenizer: Tokenizer) -> dict[str, Any]:
    """The answer's fields; logprobs only if asked for, with texts of the tokens."""
    fields = asdict(answer)
    if not answer.logprobs:
        del fields["logprobs"]
    for entry in fields.get("logprobs", ()):
        for candidate in (entry, *entry["top"]):
            candidate["text"] = token_text(candidate["token_id"], tokenizer)
    return fields


def _read_tools(path: Path) -> list[dict[str, Any]]:
    where = f"--tools {path}"
    try:
        tools = json.loads(text_of(path, "utf-8-sig", may_be_piped=True))
    except OSError as error:
        raise OptionError(f"{where}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{where}: is no JSON: {error}") from error
    if not isinstance(tools, list):
        raise OptionError(f"{where}: is {type(tools).__name__}, expected a list of functions' JSON schemas")
    return tools
