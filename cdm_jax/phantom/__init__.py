"""Patients simulated in 3D: a cohort to try the whole system on, free of any data license."""

from cdm_jax.phantom.cohort import write_cohort, write_patient
from cdm_jax.phantom.patient import PhantomPatient, PhantomSettings, simulate_patient

__all__ = ["PhantomPatient", "PhantomSettings", "simulate_patient", "write_cohort", "write_patient"]
