/* onefed.aggregate.kernels._native: the kernels as Python functions over buffers.
 *
 * Every function takes the number of an instruction set (see instruction_sets) and 1-D contiguous
 * buffers of one element type, "f" or "d". All that memory safety rests on is checked here: types,
 * sizes, alignment, overlap, indices. A wrong call raises ValueError and touches nothing. The
 * lock of the interpreter is released while a kernel runs; threads split coordinates in Python.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <stdlib.h>

#include "kernels.h"

enum { CLIENTS_MAX = 65536, INSTRUCTION_SETS_MAX = 2 };

/* One argument list: every buffer that is held, released together. The first is the one that the
 * others are compared with. */
typedef struct {
    Py_buffer *views;
    Py_ssize_t count, room;
    const void **columns; /* start of each column, in order */
    void *scratch;
} arguments;

static int invalid(const char *message) {
    PyErr_SetString(PyExc_ValueError, message);
    return 0;
}

/* ---- instruction sets ---- */

static const struct {
    const char *name;
    const kernels *of_float, *of_double;
} instruction_sets[] = {
    {"baseline", &baseline_float_kernels, &baseline_double_kernels},
#if defined(__x86_64__)
    {"avx2", &avx2_float_kernels, &avx2_double_kernels},
#endif
};

static long instruction_set_count(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 2;
#endif
    return 1;
}

/* ---- arguments ---- */

static int begin(arguments *held, Py_ssize_t room) {
    *held = (arguments){.room = room};
    held->views = calloc((size_t)room, sizeof(Py_buffer));
    held->columns = calloc((size_t)room, sizeof(void *));
    if (held->views && held->columns) return 1;
    PyErr_NoMemory();
    return 0;
}

static void end(arguments *held) {
    for (Py_ssize_t i = 0; i < held->count; i++) PyBuffer_Release(&held->views[i]);
    free(held->views);
    free(held->columns);
    free(held->scratch);
}

/* Scratch memory that starts at a cache line. */
static int reserve(arguments *held, size_t bytes) {
    held->scratch = aligned_alloc(CACHE_LINE, (bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE);
    if (held->scratch) return 1;
    PyErr_NoMemory();
    return 0;
}

/* Hold one buffer of elements of the given format (any of "fd" if it is 0). NULL: not possible. */
static const Py_buffer *hold(arguments *held, PyObject *object, char format, int writable) {
    if (held->count >= held->room) {
        invalid("too many arrays");
        return NULL;
    }
    Py_buffer *view = &held->views[held->count];
    int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(object, view, flags) != 0) {
        PyErr_Clear();
        invalid(writable ? "an array is no contiguous buffer, or cannot be written"
                         : "an array is no contiguous buffer");
        return NULL;
    }
    held->count++;
    const char *given = view->format ? view->format : "B";
    int known = given[0] != 0 && given[1] == 0 &&
                (format ? given[0] == format : given[0] == 'f' || given[0] == 'd');
    Py_ssize_t item = given[0] == 'd' ? (Py_ssize_t)sizeof(double) : 4;
    if (!known || view->itemsize != item) {
        invalid("an array has the wrong element type");
        return NULL;
    }
    if (view->ndim != 1) {
        invalid("an array is not 1-D");
        return NULL;
    }
    if ((uintptr_t)view->buf % (uintptr_t)item != 0) {
        invalid("an array is not aligned");
        return NULL;
    }
    return view;
}

static int apart(const Py_buffer *one, const Py_buffer *other) {
    uintptr_t a = (uintptr_t)one->buf, b = (uintptr_t)other->buf;
    return a + (uintptr_t)one->len <= b || b + (uintptr_t)other->len <= a ||
           invalid("an input and the result overlap");
}

/* Hold all columns, each of the format and size of like, and note where they start. If like is
 * written to, none may overlap it. Returns their number, or 0. */
static size_t hold_columns(arguments *held, PyObject *columns, const Py_buffer *like,
                           int written) {
    Py_ssize_t clients = PyTuple_Check(columns) ? PyTuple_Size(columns) : 0;
    if (clients < 1 || clients > CLIENTS_MAX) {
        invalid("the columns are not a tuple of 1 to 65536 arrays");
        return 0;
    }
    for (Py_ssize_t k = 0; k < clients; k++) {
        const Py_buffer *column = hold(held, PyTuple_GetItem(columns, k), like->format[0], 0);
        if (!column) return 0;
        if (column->len != like->len) {
            invalid("the arrays have different sizes");
            return 0;
        }
        if (written && !apart(column, like)) return 0;
        held->columns[k] = column->buf;
    }
    return (size_t)clients;
}

static Py_ssize_t room_for(PyObject *columns) {
    Py_ssize_t clients = PyTuple_Check(columns) ? PyTuple_Size(columns) : 0;
    return (clients > CLIENTS_MAX ? 0 : clients) + 3;
}

static size_t elements(const Py_buffer *view) { return (size_t)(view->len / view->itemsize); }

static int count_is(Py_ssize_t given, Py_ssize_t expected) {
    return given == expected || invalid("wrong number of arguments");
}

static const kernels *chosen(PyObject *number, const Py_buffer *like) {
    long index = PyLong_AsLong(number);
    if (index == -1 && PyErr_Occurred()) PyErr_Clear();
    if (index < 0 || index >= instruction_set_count()) {
        invalid("there is no such instruction set");
        return NULL;
    }
    return like->format[0] == 'f' ? instruction_sets[index].of_float
                                  : instruction_sets[index].of_double;
}

/* A positive finite number. */
static int positive(PyObject *object, double *value) {
    *value = PyFloat_AsDouble(object);
    if (PyErr_Occurred()) PyErr_Clear();
    return (*value > 0.0 && *value <= DBL_MAX) || invalid("a number is not positive and finite");
}

/* A whole number from low to high. */
static int between(PyObject *object, size_t low, size_t high, size_t *value) {
    Py_ssize_t given = PyLong_AsSsize_t(object);
    if (PyErr_Occurred()) PyErr_Clear();
    *value = (size_t)given;
    return (given >= 0 && *value >= low && *value <= high) || invalid("a rank is out of range");
}

/* A network: pairs (a, b) of rows with a < b. */
static const int32_t *hold_network(arguments *held, PyObject *object, size_t clients,
                                   size_t *pair_count) {
    const Py_buffer *view = hold(held, object, 'i', 0);
    if (!view) return NULL;
    const int32_t *pairs = view->buf;
    *pair_count = elements(view) / 2;
    int ordered = elements(view) % 2 == 0;
    for (size_t i = 0; i < *pair_count; i++)
        ordered &= pairs[2 * i] >= 0 && pairs[2 * i] < pairs[2 * i + 1] &&
                   (size_t)pairs[2 * i + 1] < clients;
    if (ordered) return pairs;
    invalid("a comparator is not a pair of rows");
    return NULL;
}

static PyObject *done(arguments *held) {
    end(held);
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

/* ---- functions ---- */

/* weighted_mean(set, columns, weights, divisor, out) */
static PyObject *weighted_mean(PyObject *Py_UNUSED(module), PyObject *const *given,
                               Py_ssize_t count) {
    arguments held = {0};
    double divisor;
    if (!count_is(count, 5) || !begin(&held, room_for(given[1]))) return done(&held);
    const Py_buffer *out = hold(&held, given[4], 0, 1);
    if (!out) return done(&held);
    const kernels *use = chosen(given[0], out);
    const Py_buffer *weights = use ? hold(&held, given[2], 'd', 0) : NULL;
    size_t clients = weights ? hold_columns(&held, given[1], out, 1) : 0;
    if (!clients || !positive(given[3], &divisor)) return done(&held);
    if (elements(weights) != clients) {
        invalid("there is not one weight for each column");
    } else {
        Py_BEGIN_ALLOW_THREADS
        use->weighted_mean(held.columns, weights->buf, clients, elements(out), divisor, out->buf);
        Py_END_ALLOW_THREADS
    }
    return done(&held);
}

/* fold(set, total, column, weight) */
static PyObject *fold(PyObject *Py_UNUSED(module), PyObject *const *given, Py_ssize_t count) {
    arguments held = {0};
    double weight;
    if (!count_is(count, 4) || !begin(&held, 2)) return done(&held);
    const Py_buffer *total = hold(&held, given[1], 'd', 1);
    const Py_buffer *column = total ? hold(&held, given[2], 0, 0) : NULL;
    const kernels *use = column ? chosen(given[0], column) : NULL;
    if (!use || !apart(column, total) || !positive(given[3], &weight)) return done(&held);
    if (elements(total) != elements(column)) {
        invalid("the arrays have different sizes");
    } else {
        Py_BEGIN_ALLOW_THREADS
        use->fold(total->buf, column->buf, elements(total), weight);
        Py_END_ALLOW_THREADS
    }
    return done(&held);
}

/* divide(set, total, divisor, out) */
static PyObject *divide(PyObject *Py_UNUSED(module), PyObject *const *given, Py_ssize_t count) {
    arguments held = {0};
    double divisor;
    if (!count_is(count, 4) || !begin(&held, 2)) return done(&held);
    const Py_buffer *total = hold(&held, given[1], 'd', 0);
    const Py_buffer *out = total ? hold(&held, given[3], 0, 1) : NULL;
    const kernels *use = out ? chosen(given[0], out) : NULL;
    if (!use || !apart(total, out) || !positive(given[2], &divisor)) return done(&held);
    if (elements(total) != elements(out)) {
        invalid("the arrays have different sizes");
    } else {
        Py_BEGIN_ALLOW_THREADS
        use->divide(total->buf, elements(total), divisor, out->buf);
        Py_END_ALLOW_THREADS
    }
    return done(&held);
}

/* What sorted_mean and middle_mean share: the result, the columns, the network and scratch. */
typedef struct {
    const kernels *use;
    const Py_buffer *out;
    const int32_t *pairs;
    size_t clients, pair_count;
} sorting;

static int begin_sorting(arguments *held, sorting *sort, PyObject *number, PyObject *columns,
                         PyObject *network, PyObject *out) {
    if (!begin(held, room_for(columns))) return 0;
    sort->out = hold(held, out, 0, 1);
    sort->use = sort->out ? chosen(number, sort->out) : NULL;
    sort->clients = sort->use ? hold_columns(held, columns, sort->out, 1) : 0;
    sort->pairs = sort->clients ? hold_network(held, network, sort->clients, &sort->pair_count)
                                : NULL;
    return sort->pairs && reserve(held, ranks_scratch(sort->clients, (size_t)sort->out->itemsize));
}

/* sorted_mean(set, columns, network, low, high, out) */
static PyObject *sorted_mean(PyObject *Py_UNUSED(module), PyObject *const *given,
                             Py_ssize_t count) {
    arguments held = {0};
    sorting sort = {0};
    size_t low, high;
    if (count_is(count, 6) &&
        begin_sorting(&held, &sort, given[0], given[1], given[2], given[5]) &&
        between(given[4], 1, sort.clients, &high) && between(given[3], 0, high - 1, &low)) {
        Py_BEGIN_ALLOW_THREADS
        sort.use->sorted_mean(held.columns, sort.clients, elements(sort.out), sort.pairs,
                              sort.pair_count, low, high, sort.out->buf, held.scratch);
        Py_END_ALLOW_THREADS
    }
    return done(&held);
}

/* middle_mean(set, columns, network, keep, out) */
static PyObject *middle_mean(PyObject *Py_UNUSED(module), PyObject *const *given,
                             Py_ssize_t count) {
    arguments held = {0};
    sorting sort = {0};
    size_t keep;
    if (count_is(count, 5) &&
        begin_sorting(&held, &sort, given[0], given[1], given[2], given[4]) &&
        between(given[3], 1, sort.clients, &keep)) {
        Py_BEGIN_ALLOW_THREADS
        sort.use->middle_mean(held.columns, sort.clients, elements(sort.out), sort.pairs,
                              sort.pair_count, keep, sort.out->buf, held.scratch);
        Py_END_ALLOW_THREADS
    }
    return done(&held);
}

/* gram(set, columns, centre, out): at most one superblock; writes the upper triangle */
static PyObject *gram(PyObject *Py_UNUSED(module), PyObject *const *given, Py_ssize_t count) {
    arguments held = {0};
    if (!count_is(count, 4) || !begin(&held, room_for(given[1]))) return done(&held);
    const Py_buffer *centre = hold(&held, given[2], 0, 0);
    const kernels *use = centre ? chosen(given[0], centre) : NULL;
    const Py_buffer *out = use ? hold(&held, given[3], 'd', 1) : NULL;
    size_t clients = out ? hold_columns(&held, given[1], centre, 0) : 0;
    if (!clients || !apart(centre, out)) return done(&held);
    for (size_t k = 0; k < clients; k++)
        if (!apart(&held.views[2 + k], out)) return done(&held);
    if (elements(out) != clients * clients) {
        invalid("the result has not one element for each pair of columns");
    } else if (elements(centre) > GRAM_SUPERBLOCK) {
        invalid("the columns are longer than a superblock");
    } else if (reserve(&held, gram_scratch(clients))) {
        Py_BEGIN_ALLOW_THREADS
        use->gram(held.columns, centre->buf, clients, elements(centre), out->buf, held.scratch);
        Py_END_ALLOW_THREADS
    }
    return done(&held);
}

/* advance(set, kind, numbers, old, model, memories) -> whether every result is finite. The numbers
 * are rate, beta_1, beta_2 and tau; the memories are those that the kind has, m first. */
static PyObject *advance(PyObject *Py_UNUSED(module), PyObject *const *given, Py_ssize_t count) {
    arguments held = {0};
    size_t kind;
    int finite = 0;
    if (!count_is(count, 6) || !begin(&held, 5) || !between(given[1], 0, STEP_KINDS - 1, &kind))
        return done(&held);
    const Py_buffer *old = hold(&held, given[3], 0, 0);
    const kernels *use = old ? chosen(given[0], old) : NULL;
    const Py_buffer *numbers = use ? hold(&held, given[2], 'd', 0) : NULL;
    const Py_buffer *model = numbers ? hold(&held, given[4], old->format[0], 1) : NULL;
    if (!model) return done(&held);
    Py_ssize_t memories = PyTuple_Check(given[5]) ? PyTuple_Size(given[5]) : 0;
    if (memories != step_has_m(kind) + step_has_r(kind)) invalid("wrong number of memories");
    for (Py_ssize_t k = 0; k < memories && !PyErr_Occurred(); k++)
        if (hold(&held, PyTuple_GetItem(given[5], k), old->format[0], 1))
            held.columns[k] = held.views[held.count - 1].buf;
    if (!PyErr_Occurred() && elements(numbers) != sizeof(step_numbers) / sizeof(double))
        invalid("wrong number of numbers");
    /* The model and the memories, views 2 and up, are written: none may overlap any other. */
    for (Py_ssize_t k = 2; k < held.count && !PyErr_Occurred(); k++) {
        if (held.views[k].len != old->len) invalid("the arrays have different sizes");
        for (Py_ssize_t other = 0; other < k && !PyErr_Occurred(); other++)
            apart(&held.views[other], &held.views[k]);
    }
    if (!PyErr_Occurred()) {
        void *m = step_has_m(kind) ? (void *)held.columns[0] : NULL;
        void *r = step_has_r(kind) ? (void *)held.columns[memories - 1] : NULL;
        Py_BEGIN_ALLOW_THREADS
        finite = use->advance((int)kind, numbers->buf, old->buf, model->buf, m, r, elements(old));
        Py_END_ALLOW_THREADS
    }
    end(&held);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(finite);
}

/* instruction_sets() -> names of those that this processor has, the widest last */
static PyObject *names(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(nothing)) {
    long count = instruction_set_count();
    PyObject *all = PyTuple_New(count);
    for (long i = 0; all && i < count; i++) {
        PyObject *name = PyUnicode_FromString(instruction_sets[i].name);
        if (!name || PyTuple_SetItem(all, i, name) != 0) {
            Py_DECREF(all);
            return NULL;
        }
    }
    return all;
}

#define FAST(function) {#function, (PyCFunction)(void (*)(void))function, METH_FASTCALL, NULL}

static PyMethodDef methods[] = {
    FAST(weighted_mean),
    FAST(fold),
    FAST(divide),
    FAST(sorted_mean),
    FAST(middle_mean),
    FAST(gram),
    FAST(advance),
    {"instruction_sets", names, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_native",
    .m_doc = "The compiled kernels; called by onefed.aggregate.kernels.native.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&definition); }
