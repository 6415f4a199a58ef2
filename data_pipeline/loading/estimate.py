"""How many visual tokens the next steps will keep: a running estimate that packing works with.

It is known only after a step how much the vision-guided sampler kept, but later steps are packed and read long before.
So a step is packed with what was known a fixed number of steps earlier, and the values already fixed for the coming
steps are part of the loader's state: a resumed run packs the same rows, as long as the model keeps the same tokens. On
other hardware a sum may be rounded another way and a token fall on the other side of a threshold; then the same samples
may be dealt to rows in another way.
"""

from collections.abc import Sequence


class KeptEstimate:
    """The share of LLaVA-NeXT's visual tokens that enter the language model, by step.

    Args:
        lookahead: steps that may be packed before the current one is done.
        ratios: from a checkpoint, the values of the next ``lookahead + 1`` steps; all 1 (nothing compressed) if empty.
            Where the number differs because the configuration changed, the last value is repeated.
        running: whether to learn from the steps; otherwise every step is packed as if nothing were compressed.
    """

    DECAY = 0.9
    """Weight of the past in the running mean, per step."""

    def __init__(self, lookahead: int, ratios: Sequence[float] = (), *, running: bool = True):
        assert lookahead >= 0
        known = [*ratios] or [1.0]
        self.ratios = (known + known[-1:] * (lookahead + 1))[: lookahead + 1]
        """Those of the next steps."""
        self.running = running

    def measured(self, kept: int, baseline: int) -> None:
        """Count a finished step, over all ranks.

        Args:
            kept: visual tokens that entered the language model.
            baseline: visual tokens that LLaVA-NeXT would use for the same images.
        """
        newest = self.ratios[-1]
        if self.running and baseline > 0:
            newest = self.DECAY * newest + (1 - self.DECAY) * kept / baseline
        self.ratios = [*self.ratios[1:], newest]
