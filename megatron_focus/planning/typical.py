"""The sample that a plan is made for where no data set is named."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_pipeline.config import ImageGeometry

if TYPE_CHECKING:
    from megatron_focus.planning.workload import Sample


@dataclass(frozen=True, kw_only=True)
class TypicalSample:
    """One image, a question and an answer, and what the samplers keep of it."""

    height: int = 480
    width: int = 640
    """Pixels."""
    text: int = 200
    labels: int = 100
    instruction: int = 80
    """Tokens: all text, those of it that are learnt, those of the user behind the image."""
    kept_vision: float = 0.435
    """Share of the visual tokens that the vision-guided sampler keeps: uniform routing."""
    kept_text: float = 0.75
    """Share of those that the text-guided sampler keeps: the paper's, at gamma 0.85."""

    def lengths(self, image: ImageGeometry) -> "Sample":
        """In tokens, for a model's image geometry."""
        from megatron_focus.planning.workload import assumed_sample  # here: command lines show the numbers alone

        return assumed_sample(self.height, self.width, self.text, self.labels, self.instruction, image)


TYPICAL = TypicalSample()
