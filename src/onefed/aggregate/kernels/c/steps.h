/* Steps of the server optimizers: one pass that reads the old model, the mean and the memories, and
 * writes the next ones. Square root and division are rounded exactly by IEEE 754, so the compiler
 * may do several coordinates at once. */

/* One kind of step for all coordinates; m or r is NULL where the kind has none. Returns whether
 * every stored value is finite. kind is a constant, so that the loop does not branch on it. */
TARGET ALWAYS_INLINE int NAME(steps)(const int kind, const step_numbers *numbers,
                                     const REAL *restrict old, REAL *restrict model,
                                     REAL *restrict m, REAL *restrict r, size_t size) {
    const double rate = numbers->rate, tau = numbers->tau;
    const double beta_1 = numbers->beta_1, rest_1 = 1.0 - beta_1;
    const double beta_2 = numbers->beta_2, rest_2 = 1.0 - beta_2;
    INDEX odd = 0;
    for (size_t i = 0; i < size; i++) {
        double x = (double)old[i], delta = (double)model[i] - x, moved = delta;
        if (kind == STEP_MOMENTUM) moved = (double)m[i] * beta_1 + delta;
        if (kind == STEP_ADAM || kind == STEP_YOGI)
            moved = (double)m[i] * beta_1 + delta * rest_1;
        if (kind != STEP_ADAGRAD) {
            m[i] = (REAL)moved;
            odd |= (INDEX) !(m[i] - m[i] == (REAL)0.0); /* NaN or infinite */
        }
        moved = moved * rate;
        if (kind != STEP_MOMENTUM) {
            double v = (double)r[i] * (double)r[i], square = delta * delta;
            if (kind == STEP_ADAGRAD) v = v + square;
            if (kind == STEP_ADAM) v = v * beta_2 + square * rest_2;
            if (kind == STEP_YOGI) {
                double part = square * rest_2;
                v = v - (v > square ? part : v < square ? -part : 0.0);
            }
            double root = __builtin_sqrt(v);
            r[i] = (REAL)root;
            odd |= (INDEX) !(r[i] - r[i] == (REAL)0.0);
            moved = moved / (root + tau);
        }
        model[i] = (REAL)(x + moved);
        odd |= (INDEX) !(model[i] - model[i] == (REAL)0.0);
    }
    return odd == 0;
}

TARGET static int NAME(advance)(int kind, const step_numbers *numbers, const void *old, void *model,
                                void *m, void *r, size_t size) {
    switch (kind) {
    case STEP_MOMENTUM: return NAME(steps)(STEP_MOMENTUM, numbers, old, model, m, r, size);
    case STEP_ADAGRAD: return NAME(steps)(STEP_ADAGRAD, numbers, old, model, m, r, size);
    case STEP_ADAM: return NAME(steps)(STEP_ADAM, numbers, old, model, m, r, size);
    default: return NAME(steps)(STEP_YOGI, numbers, old, model, m, r, size);
    }
}
