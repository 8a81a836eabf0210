"""How many cells of a KV cache its sequences take together: what is shared counts once."""


class _Block:
    """Cells that one sequence appended; others may share the first of them."""

    __slots__ = ("users",)

    def __init__(self) -> None:
        self.users: dict[int, int] = {}
        """How many of the cells each sequence has, by its number."""


class Cells:
    """The cells of every sequence, as the engine holds them. Sequences are known by their numbers."""

    def __init__(self, n_sequences: int) -> None:
        self._blocks: list[list[_Block]] = [[] for _ in range(n_sequences)]
        self.used = 0
        """Cells that are taken."""

    def used_by(self, sequences: set[int]) -> int:
        """Cells that these sequences take together."""
        blocks = {id(block): block for number in sequences for block in self._blocks[number]}
        return sum(max(block.users.get(number, 0) for number in sequences) for block in blocks.values())

    def append(self, sequence: int, count: int) -> None:
        """The sequence grows by ``count`` cells."""
        blocks = self._blocks[sequence]
        if not blocks or len(blocks[-1].users) > 1:
            blocks.append(_Block())
        users = blocks[-1].users
        users[sequence] = users.get(sequence, 0) + count
        self.used += count

    def cut(self, sequence: int, length: int) -> None:
        """The sequence keeps its first ``length`` cells."""
        kept = 0
        blocks = self._blocks[sequence]
        for at, block in enumerate(blocks):
            keep = min(length - kept, block.users[sequence])
            if keep <= 0:
                for gone in blocks[at:]:
                    self._set(gone, sequence, 0)
                del blocks[at:]
                return
            self._set(block, sequence, keep)
            kept += keep

    def share(self, source: int, target: int, length: int) -> None:
        """The first ``length`` cells of ``source`` are those of ``target`` too, in place of its own."""
        more = sum(block.users[target] for block in self._blocks[target]) - length
        self.cut(target, 0)
        taken = 0
        for block in self._blocks[source]:
            count = min(length - taken, block.users[source])
            if count <= 0:
                break
            block.users[target] = count  # no more than the source has
            self._blocks[target].append(block)
            taken += count
        if more > 0:
            self.append(target, more)

    def _set(self, block: _Block, sequence: int, count: int) -> None:
        before = max(block.users.values())
        if count:
            block.users[sequence] = count
        else:
            del block.users[sequence]
        self.used -= before - max(block.users.values(), default=0)
