"""Module 4's helper package: number formats, stable steps, honest benchmarks, attention kernels, scaling laws."""
