#include "coordinator/cost.h"

#include <math.h>
#include <string.h>

enum {
    TERM_COUNT = 3,
    // A bin's mean follows what is new at least this fast.
    BIN_WEIGHT_MAX = 32,
    // The fit is renewed after so many observations, and after each of the first ones.
    FIT_INTERVAL = 16,
    MEASURED_COUNT = 8,
};

static const struct cost_prior PRIOR_DEFAULT = {.fixed = 32, .attended = 1e-4};
// How much the prior weighs beside one measured step; a term is at least so much of its prior.
static const double PRIOR_WEIGHT = 1e-4, TERM_MIN = 0.01;
// A step that took so many times its bin's mean, or the inverse, counts as that.
static const double OUTLIER_RATIO = 4;

struct cost_prior cost_prior_of(const struct model_config *model) {
    // Multiply-adds: a parameter for each row; two for each element of a head and attended
    // position.
    double layer = (double)model_layer_parameter_count(model);
    double attention = 2.0 * model->head_count * model->head_size;
    double head = (double)model_embedding_parameter_count(model) / model->layer_count;
    return (struct cost_prior){.fixed = PRIOR_DEFAULT.fixed,
                               .attended = attention / (layer + head)};
}

void cost_init(struct cost *cost, const struct cost_prior *prior) {
    memset(cost, 0, sizeof(*cost));
    cost->prior = (struct cost_terms){
        .fixed = prior->fixed > 0 ? prior->fixed : PRIOR_DEFAULT.fixed,
        .row = 1,
        .attended = prior->attended > 0 ? prior->attended : PRIOR_DEFAULT.attended,
    };
    cost->slowest = cost->sum = cost->prior;
}

bool cost_is_measured(const struct cost *cost) {
    return cost->observation_count >= MEASURED_COUNT;
}

// -- fit ------------------------------------------------------------------------------------------

// Least squares over units of the prior: minimises the sum over bins of weight * (error / time)^2,
// and of PRIOR_WEIGHT * (unit - 1)^2.
struct equations {
    double matrix[TERM_COUNT][TERM_COUNT];
    double right[TERM_COUNT];
};

static double predicted(const struct cost_terms *terms, const struct cost_bin *bin) {
    return terms->fixed + terms->row * bin->rows + terms->attended * bin->attended;
}

static double time_of(const struct cost_bin *bin, bool is_sum) {
    return is_sum ? bin->sum : bin->slowest;
}

// The prior, in ns: the one scale that fits best.
static struct cost_terms scaled_prior(const struct cost *cost, bool is_sum) {
    double product = 0, square = 0;
    const struct cost_bin *bins = &cost->bins[0][0];
    for (int i = 0; i < COST_ROW_BIN_COUNT * COST_ATTENDED_BIN_COUNT; i++) {
        if (bins[i].weight == 0) continue;
        double ratio = predicted(&cost->prior, &bins[i]) / time_of(&bins[i], is_sum);
        product += bins[i].weight * ratio;
        square += bins[i].weight * ratio * ratio;
    }
    double scale = product / square;
    return (struct cost_terms){cost->prior.fixed * scale, cost->prior.row * scale,
                               cost->prior.attended * scale};
}

static struct equations gather(const struct cost *cost, const struct cost_terms *prior,
                               bool is_sum) {
    struct equations e = {0};
    for (int t = 0; t < TERM_COUNT; t++)
        e.matrix[t][t] = e.right[t] = PRIOR_WEIGHT;
    const struct cost_bin *bins = &cost->bins[0][0];
    for (int i = 0; i < COST_ROW_BIN_COUNT * COST_ATTENDED_BIN_COUNT; i++) {
        if (bins[i].weight == 0) continue;
        double time = time_of(&bins[i], is_sum);
        double x[TERM_COUNT] = {prior->fixed / time, prior->row * bins[i].rows / time,
                                prior->attended * bins[i].attended / time};
        for (int r = 0; r < TERM_COUNT; r++) {
            for (int c = 0; c < TERM_COUNT; c++)
                e.matrix[r][c] += bins[i].weight * x[r] * x[c];
            e.right[r] += bins[i].weight * x[r];
        }
    }
    return e;
}

// Unit t is `value`, whatever the others are.
static void fix_unit(struct equations *e, int t, double value) {
    for (int r = 0; r < TERM_COUNT; r++) {
        e->right[r] -= e->matrix[r][t] * value;
        e->matrix[r][t] = e->matrix[t][r] = 0;
    }
    e->matrix[t][t] = 1;
    e->right[t] = value;
}

// Elimination without pivots: the matrix is positive definite.
static void solve(struct equations e, double units[TERM_COUNT]) {
    for (int p = 0; p < TERM_COUNT; p++)
        for (int r = p + 1; r < TERM_COUNT; r++) {
            double factor = e.matrix[r][p] / e.matrix[p][p];
            for (int c = p; c < TERM_COUNT; c++)
                e.matrix[r][c] -= factor * e.matrix[p][c];
            e.right[r] -= factor * e.right[p];
        }
    for (int r = TERM_COUNT - 1; r >= 0; r--) {
        units[r] = e.right[r];
        for (int c = r + 1; c < TERM_COUNT; c++)
            units[r] -= e.matrix[r][c] * units[c];
        units[r] /= e.matrix[r][r];
    }
}

static struct cost_terms fitted(const struct cost *cost, bool is_sum) {
    struct cost_terms prior = scaled_prior(cost, is_sum);
    struct equations e = gather(cost, &prior, is_sum);
    double units[TERM_COUNT];
    // No term is negative: the lowest one below the least is set to it, and the others fitted anew.
    for (int round = 0; round < TERM_COUNT; round++) {
        solve(e, units);
        int lowest = 0;
        for (int t = 1; t < TERM_COUNT; t++)
            if (units[t] < units[lowest]) lowest = t;
        if (units[lowest] >= TERM_MIN) break;
        fix_unit(&e, lowest, TERM_MIN);
        units[lowest] = TERM_MIN;
    }
    for (int t = 0; t < TERM_COUNT; t++)
        units[t] = fmax(units[t], TERM_MIN);
    return (struct cost_terms){prior.fixed * units[0], prior.row * units[1],
                               prior.attended * units[2]};
}

// -- observations ---------------------------------------------------------------------------------

static int log2_of(uint64_t value) {
    return 63 - __builtin_clzll(value | 1);
}

static struct cost_bin *bin_of(struct cost *cost, const struct step_cost *step) {
    int row_bin = log2_of(step->row_count);
    int attended_bin = log2_of(step->attended_count / step->row_count) / 2;
    if (row_bin >= COST_ROW_BIN_COUNT) row_bin = COST_ROW_BIN_COUNT - 1;
    if (attended_bin >= COST_ATTENDED_BIN_COUNT) attended_bin = COST_ATTENDED_BIN_COUNT - 1;
    return &cost->bins[row_bin][attended_bin];
}

static double without_outliers(const struct cost_bin *bin, double time, double mean) {
    if (bin->weight == 0) return time;
    return fmin(fmax(time, mean / OUTLIER_RATIO), mean * OUTLIER_RATIO);
}

void cost_observe(struct cost *cost, const struct step_cost *step) {
    if (step->row_count == 0 || step->slowest_ns == 0 || step->sum_ns == 0) return;
    struct cost_bin *bin = bin_of(cost, step);
    double slowest = without_outliers(bin, (double)step->slowest_ns, bin->slowest);
    double sum = without_outliers(bin, (double)step->sum_ns, bin->sum);
    if (bin->weight < BIN_WEIGHT_MAX) bin->weight += 1;
    double share = 1 / bin->weight;
    bin->rows += share * (step->row_count - bin->rows);
    bin->attended += share * ((double)step->attended_count - bin->attended);
    bin->slowest += share * (slowest - bin->slowest);
    bin->sum += share * (sum - bin->sum);
    if (cost->observation_count < UINT32_MAX) cost->observation_count++;
    cost->unfitted_count++;
    if (cost->observation_count > FIT_INTERVAL && cost->unfitted_count < FIT_INTERVAL) return;
    cost->unfitted_count = 0;
    cost->slowest = fitted(cost, false);
    cost->sum = fitted(cost, true);
}

void cost_observe_hop(struct cost *cost, uint64_t hop_ns) {
    if (cost->hop_ns == 0)
        cost->hop_ns = (double)hop_ns;
    else
        cost->hop_ns += ((double)hop_ns - cost->hop_ns) / BIN_WEIGHT_MAX;
}

void cost_age(struct cost *cost) {
    struct cost_bin *bins = &cost->bins[0][0];
    for (int i = 0; i < COST_ROW_BIN_COUNT * COST_ATTENDED_BIN_COUNT; i++)
        bins[i].weight = fmin(bins[i].weight, 1.0 / BIN_WEIGHT_MAX);
    cost->hop_ns = 0;
}

// -- use ------------------------------------------------------------------------------------------

double cost_of_rows(const struct cost_terms *terms, uint32_t first, uint32_t row_count) {
    double n = row_count;
    return terms->row * n + terms->attended * (n * first + n * (n + 1) / 2);
}

uint32_t cost_rows_within(const struct cost_terms *terms, uint32_t first, double budget) {
    // attended/2 * n^2 + (row + attended * (first + 1/2)) * n = budget
    if (budget <= 0) return 0;
    double linear = terms->row + terms->attended * (first + 0.5);
    double root = sqrt(linear * linear + 2 * terms->attended * budget);
    double n = 2 * budget / (linear + root);
    return n < MICROBATCH_ROW_COUNT_MAX ? (uint32_t)(n + 1e-9) : MICROBATCH_ROW_COUNT_MAX;
}
