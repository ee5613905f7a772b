"""How good an image is: references and regions, metrics, noise spectra, statistics, and the gate.

In: low dose, restored and full dose in HU. Out: values a slice, tables a patient, a verdict. May
import `samples` and `restoration`.
"""
