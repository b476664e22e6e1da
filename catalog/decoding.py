"""How the candidates of a prompt are drawn: what an engine carries out and what the learner scores by."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """One way to draw K candidates, made by `DecodeSettings.decoding` and handed on whole.

    A field is read by the code that draws or scores by it, and by nothing on the way there.

    Example:
        >>> Decoding(kind="stochastic_beam", candidates=16, temperature=0.8).sequences
        17
    """

    # sample: K independent samples; beam: the K likeliest sequences; stochastic_beam: K distinct ones,
    # sampled without replacement
    kind: Literal["sample", "beam", "stochastic_beam"] = "sample"
    candidates: int  # K
    temperature: float = 1.0  # divides the logits
    top_p: float = 1.0  # probability of the nucleus that is sampled from; taken after mask and temperature
    constrained: bool = False  # every step is masked to the catalogue's trie

    def __post_init__(self) -> None:
        """Refuse what the kind cannot do."""
        if self.kind == "beam" and (self.temperature != 1.0 or self.top_p != 1.0):
            raise ValueError("beams take no temperature or top_p: leave both at 1.0")
        if self.kind == "stochastic_beam" and self.top_p != 1.0:
            raise ValueError(
                f"top_p is {self.top_p}, but stochastic beams are drawn from all sequences: leave it at 1.0 "
                "and use temperature, or take kind: sample"
            )

    @property
    def sequences(self) -> int:
        """Sequences of a prompt that an engine advances together."""
        return self.candidates + 1 if self.kind == "stochastic_beam" else self.candidates

    @property
    def distinct(self) -> int:
        """Different sequences that there must be to choose from."""
        return 1 if self.kind == "sample" else self.candidates

    @property
    def is_drawn(self) -> bool:
        """Candidates are samples, with or without replacement; exact beams are not drawn from anything."""
        return self.kind != "beam"


# The policy's own distribution: the whole vocabulary at temperature 1.
PLAIN_POLICY = Decoding(candidates=1)
