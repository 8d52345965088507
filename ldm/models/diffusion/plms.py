"""PLMS sampling is out of scope; the name is here for scripts that import it beside DDIMSampler."""

from ldm.published.configs import out_of_scope

PLMSSampler = out_of_scope("ldm.models.diffusion.plms.PLMSSampler")
