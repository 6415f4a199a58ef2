"""How many visual tokens are left where, against LLaVA-NeXT; newlines are counted everywhere."""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_focus.release.selection import ImageSelection


@dataclass(frozen=True, kw_only=True)
class VisualTokenCounts:
    """Tokens of the images of one question, or of all."""

    baseline: int = 0
    """Those of LLaVA-NeXT."""
    after_vision: int = 0
    """Those that the first layer of the language model reads."""
    after_text: int = 0
    """Those that the last layer reads."""
    effective: float = 0.0
    """Mean over the layers (the paper's m - n + i n / L)."""

    def __add__(self, other: "VisualTokenCounts") -> "VisualTokenCounts":
        return VisualTokenCounts(
            baseline=self.baseline + other.baseline,
            after_vision=self.after_vision + other.after_vision,
            after_text=self.after_text + other.after_text,
            effective=self.effective + other.effective,
        )

    def shares(self) -> dict[str, float]:
        """Place -> share of the baseline, 0 to 1; nothing where there was no image."""
        if not self.baseline:
            return {}
        return {
            "into the language model": self.after_vision / self.baseline,
            "out of its last layer": self.after_text / self.baseline,
            "mean over its layers": self.effective / self.baseline,
        }


def count_visual_tokens(images: Sequence[ImageSelection], layers: int) -> VisualTokenCounts:
    """The counts of one question's images in a language model of so many layers."""
    total = VisualTokenCounts()
    for image in images:
        read, kept = image.num_tokens, image.num_kept
        before = 0 if image.drop_layer is None else image.drop_layer
        total += VisualTokenCounts(
            baseline=image.baseline_tokens,
            after_vision=read,
            after_text=kept,
            effective=kept + (read - kept) * before / layers,
        )
    return total
