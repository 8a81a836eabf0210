"""A tour in cells: open it in an editor that knows ``# %%`` (VS Code, Spyder, PyCharm, Jupytext), or run it whole.

    pip install ".[convert,demo,examples]"
    python examples/notebook.py [FOLDER]      # the plots go to FOLDER (default: ./plots)

From a clone's root, since it takes a picture and a small model of the repository.
"""

# %% What is needed
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import edge_llama
from edge_llama.convert import convert

PLOTS = Path(sys.argv[1] if __name__ == "__main__" and len(sys.argv) == 2 else "plots")
PLOTS.mkdir(parents=True, exist_ok=True)
PICTURE = Path("docs/digits.png")

# %% A model: the built-in one, 135 million weights. It stays open until the last cell.
model = edge_llama.open()
print(model.location, f"{model.n_ctx:,} tokens of context")

# %% A chat: text comes as it is written
chat = model.chat(system="Answer briefly.", temperature=0)
for piece in chat.send("What is the capital of Japan?"):
    print(piece.text, end="", flush=True)
print()

# %% How sure was it? With logprobs each token comes with its own, and with those of the likeliest in its place.
answer = chat.retry(logprobs=5).result()
names = [model.tokenizer.piece(token).decode("utf-8", "replace") for token in answer.tokens]
chosen = np.exp([entry.logprob for entry in answer.logprobs])
second = np.exp([sorted(each.logprob for each in entry.top)[-2] for entry in answer.logprobs])

figure, axes = plt.subplots(figsize=(8, 3.5), layout="constrained")
places = np.arange(len(names))
axes.bar(places - 0.2, chosen, 0.4, label="the token that was written")
axes.bar(places + 0.2, second, 0.4, label="the second likeliest there")
axes.set_xticks(places, [repr(name)[1:-1] for name in names], rotation=30)
axes.set_ylabel("probability")
axes.set_title(f"What is the capital of Japan? {answer.text!r}", parse_math=False)
axes.set_ylim(0, 1.2)
axes.legend(loc="upper center", ncols=2)
figure.savefig(PLOTS / "logprobs.png")
plt.show()
print(f"the least sure of {len(names)} tokens: {names[int(chosen.argmin())]!r}, {chosen.min():.0%}")

# %% Which texts are alike? Vectors of unit length, so that products are cosines.
texts = ["Tokyo is in Japan.", "Kyoto is a Japanese city.", "My dog likes the sea.", "The cat sleeps."]
vectors = model.embed(texts)
figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
shown = axes.imshow(vectors @ vectors.T, cmap="viridis")
axes.set_xticks(range(len(texts)), texts, rotation=30, ha="right")
axes.set_yticks(range(len(texts)), texts)
figure.colorbar(shown, label="cosine")
figure.savefig(PLOTS / "cosines.png")
plt.show()

# %% A picture, and what a model that was trained to read digits says to it. It is converted first: a second or two.
if not (PLOTS / "digits").exists():
    convert("tests/data/llama4_digits", PLOTS / "digits", quant="q8_0")
with edge_llama.open(PLOTS / "digits") as reader:
    image = edge_llama.Image.open(PICTURE)
    seen = reader.chat(temperature=0).send("Which digits are these?", images=[image]).result()
    print(seen.text, f"({reader.image_tokens(image)} of {seen.timings.prompt_tokens} tokens were the picture)")

figure, axes = plt.subplots(figsize=(4, 3), layout="constrained")
axes.imshow(image.pixels())
axes.set_axis_off()
axes.set_title(seen.text)
figure.savefig(PLOTS / "digits.png")
plt.show()

# %% The end: the memory is free again
model.close()
