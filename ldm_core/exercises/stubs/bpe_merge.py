"""Exercise 9: a byte-pair merge."""


def merge(symbols: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """The tokens of a word, by byte-pair encoding.

    symbols: of a word, one or more, such as ["c", "a", "t</w>"]; the last one is marked.
    ranks: two adjacent symbols that may merge -> the rank of this merge, 0 for the one learned first.
    """
    raise NotImplementedError
