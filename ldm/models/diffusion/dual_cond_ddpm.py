"""ArtFusion as a LightningModule: the class that published config files name."""

from collections.abc import Callable, Mapping

from torch import Tensor

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.dual_cond import DualConditionDiffusionWrapper, DualCondModel

__all__ = ["DualCondLDM", "DualConditionDiffusionWrapper"]


class DualCondLDM(DualCondModel, LatentDiffusion):
    """The dual-conditional model with its training loop; parameters are DualCondModel's."""

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.load_style_network()

    def first_measures(
        self,
    ) -> list[tuple[Callable[[Mapping[str, Tensor]], Tensor], Callable[[Tensor], None]]]:
        measures = super().first_measures()
        if self.model.diffusion_model.context_whitening is not None:
            measures.append((self.batch_style, lambda style: self.measure_styles(self.gathered(style))))
        return measures
