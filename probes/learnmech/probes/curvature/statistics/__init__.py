"""Statistics of the whole spectrum: trace, Frobenius norm, density."""

from learnmech.probes.curvature.statistics.density import Quantile
from learnmech.probes.curvature.statistics.measure import hessian_spectrum, hessian_spectrum_of
from learnmech.probes.curvature.statistics.spectrum import Spectrum

__all__ = ["Quantile", "Spectrum", "hessian_spectrum", "hessian_spectrum_of"]
