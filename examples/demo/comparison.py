"""The table: visual tokens and times of one answer, beside those of the same model with both samplers off."""

from dataclasses import dataclass

from examples.demo.asking import Measured


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    as_set: str
    """With the samplers as the page sets them."""
    off: str
    """With both samplers off; empty where that was not measured."""
    ratio: str
    """Of tokens the share of LLaVA-NeXT's, of times how many times faster."""


@dataclass(frozen=True)
class TokenCounts:
    """Visual tokens of one answer, newlines included."""

    baseline: int
    """m0, LLaVA-NeXT's."""
    read: int
    """m, behind the vision-guided sampler: what the first layer reads."""
    kept: int
    """m - n, behind the text-guided sampler: what the last layer reads."""
    drop_layer: int | None
    layers: int

    @property
    def effective(self) -> float:
        """m - n + i n / L, the mean over the layers : the dropped tokens pass i of L layers."""
        dropped = self.read - self.kept
        return self.kept + dropped * (self.drop_layer or 0) / self.layers


def token_counts(measured: Measured, layers: int) -> TokenCounts:
    """Counts over the pictures of one answer; ``layers`` are those of the language model."""
    images = measured.answer.selection
    return TokenCounts(
        baseline=sum(image.baseline_tokens for image in images),
        read=sum(image.num_tokens for image in images),
        kept=sum(image.num_kept for image in images),
        drop_layer=images[0].drop_layer,
        layers=layers,
    )


def table(as_set: Measured, off: Measured | None, layers: int) -> list[Row]:
    """The rows; ``off`` is None until, or unless, the uncompressed model has answered."""
    counts = token_counts(as_set, layers)
    plain = token_counts(off, layers) if off is not None else None
    behind = "" if counts.drop_layer is None else f", from layer {counts.drop_layer} on"

    def tokens(name: str, attribute: str) -> Row:
        value = getattr(counts, attribute)
        other = f"{getattr(plain, attribute):,.0f}" if plain is not None else ""
        return Row(name, f"{value:,.0f}", other, f"{value / counts.baseline:.1%}")

    def seconds(name: str, attribute: str) -> Row:
        value, other = getattr(as_set, attribute), getattr(off, attribute, None)
        ratio = f"{other / value:.2f} ×" if value and other else ""
        return Row(name, _duration(value), _duration(other), ratio)

    return [
        tokens("Visual tokens of LLaVA-NeXT", "baseline"),
        tokens("after the vision-guided sampler", "read"),
        tokens(f"after the text-guided sampler{behind}", "kept"),
        tokens(f"effective: mean over the {layers} layers", "effective"),
        seconds("Prefill", "prefill_seconds"),
        seconds("Each further token", "token_seconds"),
        Row("New tokens", str(as_set.answer.new_tokens), str(off.answer.new_tokens) if off is not None else "", ""),
    ]


def _duration(seconds: float | None) -> str:
    """In milliseconds, or seconds from ten on."""
    if seconds is None:
        return ""
    return f"{seconds:.1f} s" if seconds >= 10 else f"{1000 * seconds:,.1f} ms"
