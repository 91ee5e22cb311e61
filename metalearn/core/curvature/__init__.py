"""Fisher, Gauss-Newton and Hessian: matrices, operators, spectra, traces and solves."""
