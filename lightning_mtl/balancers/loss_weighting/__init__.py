"""Balancers that weight the losses."""

from lightning_mtl.balancers.loss_weighting.base import LossWeighting
from lightning_mtl.balancers.loss_weighting.coba import CoBa, convergence_weights
from lightning_mtl.balancers.loss_weighting.cosmos import COSMOS
from lightning_mtl.balancers.loss_weighting.dwa import DWA
from lightning_mtl.balancers.loss_weighting.famo import FAMO
from lightning_mtl.balancers.loss_weighting.fixed import EqualWeighting, FixedWeighting
from lightning_mtl.balancers.loss_weighting.geometric_loss import GeometricLoss
from lightning_mtl.balancers.loss_weighting.gradnorm import GradNorm
from lightning_mtl.balancers.loss_weighting.imtl_l import IMTLL
from lightning_mtl.balancers.loss_weighting.initial_loss_normalization import InitialLossNormalization
from lightning_mtl.balancers.loss_weighting.label_proportional import LabelProportionalWeighting
from lightning_mtl.balancers.loss_weighting.log_transform import LogTransform
from lightning_mtl.balancers.loss_weighting.pbi import PBI
from lightning_mtl.balancers.loss_weighting.preference_weighting import PreferenceWeighting
from lightning_mtl.balancers.loss_weighting.random_loss_weighting import RandomLossWeighting
from lightning_mtl.balancers.loss_weighting.scheduled_weighting import LossSchedule, ScheduledWeighting
from lightning_mtl.balancers.loss_weighting.smooth_tchebycheff import LogSmoothTchebycheff, SmoothTchebycheff
from lightning_mtl.balancers.loss_weighting.uncertainty_weighting import UncertaintyWeighting

__all__ = [
    "COSMOS",
    "DWA",
    "FAMO",
    "IMTLL",
    "PBI",
    "CoBa",
    "EqualWeighting",
    "FixedWeighting",
    "GeometricLoss",
    "GradNorm",
    "InitialLossNormalization",
    "LabelProportionalWeighting",
    "LogSmoothTchebycheff",
    "LogTransform",
    "LossSchedule",
    "LossWeighting",
    "PreferenceWeighting",
    "RandomLossWeighting",
    "ScheduledWeighting",
    "SmoothTchebycheff",
    "UncertaintyWeighting",
    "convergence_weights",
]
