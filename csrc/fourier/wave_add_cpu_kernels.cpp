// The CPU kernels of wave_add for one instruction set.
