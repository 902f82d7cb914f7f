"""Balancers that look at the gradients of the tasks."""

from lightning_mtl.balancers.gradient_weighting.aligned_mtl import AlignedMTL
from lightning_mtl.balancers.gradient_weighting.base import (
    GradientAggregation,
    GradientBalancer,
    GradientOptions,
    GradientWeighting,
    NonFiniteGradientError,
)
from lightning_mtl.balancers.gradient_weighting.cagrad import CAGrad
from lightning_mtl.balancers.gradient_weighting.config import ConFIG
from lightning_mtl.balancers.gradient_weighting.cr_mogm import CRMOGM
from lightning_mtl.balancers.gradient_weighting.db_mtl import DBMTL
from lightning_mtl.balancers.gradient_weighting.dualproj import DualProj
from lightning_mtl.balancers.gradient_weighting.encodec import EncodecBalancer
from lightning_mtl.balancers.gradient_weighting.epo import EPO
from lightning_mtl.balancers.gradient_weighting.excess_mtl import ExcessMTL
from lightning_mtl.balancers.gradient_weighting.fairgrad import FairGrad
from lightning_mtl.balancers.gradient_weighting.graddrop import GradDrop
from lightning_mtl.balancers.gradient_weighting.gradient_memory import MatrixWeighting
from lightning_mtl.balancers.gradient_weighting.gradvac import GradVac
from lightning_mtl.balancers.gradient_weighting.imtl import (
    IMTL,
    IMTLG,
)
from lightning_mtl.balancers.gradient_weighting.krum import Krum
from lightning_mtl.balancers.gradient_weighting.linear_scalarization import LinearScalarization
from lightning_mtl.balancers.gradient_weighting.mgda import MGDA
from lightning_mtl.balancers.gradient_weighting.moco import MoCo
from lightning_mtl.balancers.gradient_weighting.modo import MoDo
from lightning_mtl.balancers.gradient_weighting.nash_mtl import NashMTL
from lightning_mtl.balancers.gradient_weighting.pcd import PCD
from lightning_mtl.balancers.gradient_weighting.pcgrad import PCGrad
from lightning_mtl.balancers.gradient_weighting.pmtl import PMTL
from lightning_mtl.balancers.gradient_weighting.rotograd import RotoGrad
from lightning_mtl.balancers.gradient_weighting.sdmgrad import SDMGrad
from lightning_mtl.balancers.gradient_weighting.trimmed_mean import TrimmedMean
from lightning_mtl.balancers.gradient_weighting.upgrad import UPGrad

__all__ = [
    "CRMOGM",
    "DBMTL",
    "EPO",
    "IMTL",
    "IMTLG",
    "MGDA",
    "PCD",
    "PMTL",
    "AlignedMTL",
    "CAGrad",
    "ConFIG",
    "DualProj",
    "EncodecBalancer",
    "ExcessMTL",
    "FairGrad",
    "GradDrop",
    "GradVac",
    "GradientAggregation",
    "GradientBalancer",
    "GradientOptions",
    "GradientWeighting",
    "Krum",
    "LinearScalarization",
    "MatrixWeighting",
    "MoCo",
    "MoDo",
    "NashMTL",
    "NonFiniteGradientError",
    "PCGrad",
    "RotoGrad",
    "SDMGrad",
    "TrimmedMean",
    "UPGrad",
]
