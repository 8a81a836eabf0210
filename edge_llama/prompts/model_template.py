"""Which of a model's chat templates renders its prompts."""

from dataclasses import dataclass

from edge_llama.errors import OptionError, TemplateError
from edge_llama.files.artifact import Artifact
from edge_llama.prompts.chat_template import TOOL_USE, ChatTemplate
from edge_llama.prompts.tokenizer import Tokenizer

_DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class ModelTemplate:
    """Jinja text, not compiled yet, with the name for errors; ``for_tools`` takes its place where tools are given."""

    source: str | None
    where: str
    for_tools: str | None = None
    names: tuple[str, ...] = ()
    """What the model's own templates are called."""

    def compiled(self, tokenizer: Tokenizer) -> ChatTemplate:
        """TemplateError if there is none, or it is not valid."""
        if self.source is None:
            has = f"has {', '.join(self.names)} and no default one" if self.names else "has no chat template"
            raise TemplateError(
                f"{self.where}: the model {has}",
                remedy=f"pass one (--chat-template {'NAME' if self.names else 'FILE'}), "
                "or continue plain text (run --raw, Model.generate)",
            )
        return ChatTemplate(self.source, tokenizer, self.where, self.for_tools)


def template_of(artifact: Artifact, given: str | None) -> ModelTemplate:
    """The template that ``given`` means: Jinja text, or a name among the model's own; None: the default one.

    As in transformers, the one called ``tool_use`` takes its place for prompts with tools, where none was asked for.
    OptionError for what is neither.
    """
    where = str(artifact.path)
    own = {**({_DEFAULT: artifact.chat_template} if artifact.chat_template else {}), **artifact.named_templates}
    if given is None:
        return ModelTemplate(own.get(_DEFAULT), where, own.get(TOOL_USE), tuple(own))
    if given in own:
        return ModelTemplate(own[given], f"{where}: {given}")
    if "{" not in given:
        known = f"the model has {', '.join(own)}" if own else "the model has none of its own"
        raise OptionError(
            f"chat_template is {given[:60]!r}: no template, and none of {where} is called so",
            remedy=f"{known}; or give a Jinja file (--chat-template FILE)",
        )
    return ModelTemplate(given, f"{where}: the template that was given")
