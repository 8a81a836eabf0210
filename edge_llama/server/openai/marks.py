"""What several of OpenAI's interfaces say of fields that have no effect, or are refused."""

from edge_llama.server.fields import Ignored, Refused

NO_EFFECT_ON_CACHE = Ignored("prompts are cached as they are, whoever sends them")
NO_USERS = Ignored("users are not told apart")
ONE_TIER = Ignored("there is one tier")
ALWAYS_FITS = Ignored("arguments of calls that must come always fit; others are the model's own")
NOTHING_HIDDEN = Ignored("nothing is added to hide lengths: use TLS")
ALL_TILES = Ignored("an image is always cut into as many tiles as the model allows")
NO_VERBOSITY = Ignored("models here were not trained for it")
NAMED_IN_TEXT = Ignored("it is not shown to the model: say it in a message")
NOT_BUILT_IN = Refused("this server runs no tools: give functions, which the client runs")
NO_MODERATION = Refused("there is no moderation here")
