/* Normals from uniform 32-bit words, written so that compilers vectorize the loops.
 *
 * Words and draws come in blocks. A block holds BLOCK pairs of draws. First all first draws of
 * its pairs, then all second draws; likewise, each kind of word stands together. So draw i
 * depends on its own block alone, and any number of blocks can be made at once.
 *
 * A pair is Box and Muller's transform, in one quadrant, with a random sign for each draw:
 *
 *     r = sqrt(-ln u),  x = +- r (cos y - sin y),  x' = +- r (cos y + sin y),        (1)
 *
 * with u in (0, 1), y = pi t / 4 and t in (-1, 1). It equals sqrt(-2 ln u) times cosine and sine
 * of the angle pi (1 + t) / 4. All bits stand for the middle of the interval that further bits
 * can reach, so that u is never 0 or 1.
 *
 * -ln u is taken from u below 1/2 and from u - 1 above, which are both exact at their small
 * ends. With ln u = e ln 2 + ln(1 + f), f lies between sqrt(1/2) - 1 and sqrt(2) - 1.
 *
 * kernels.py has the same formulas in numpy, and the same layout of bits.
 */
#ifndef PLAIN /* tests define it, to build one version at a time, without Python */
#include <Python.h>
#endif
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__FAST_MATH__) || (FLT_EVAL_METHOD != 0 && FLT_EVAL_METHOD != 16)
#error "rounding and NaN must be those of IEEE 754: the program uses numpy instead"
#endif
#ifdef _MSC_VER
#define restrict __restrict
#endif
#ifdef _WIN32
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif
/* With gcc and glibc, three versions are built, and the processor selects one when loaded. */
#if !defined(PLAIN) && defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__) && __GNUC__ >= 12
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif

#define BLOCK 64

static inline float to_float(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
static inline uint32_t float_bits(float x) { uint32_t bits; memcpy(&bits, &x, 4); return bits; }
static inline double to_double(uint64_t bits) { double x; memcpy(&x, &bits, 8); return x; }
static inline uint64_t double_bits(double x) { uint64_t bits; memcpy(&bits, &x, 8); return bits; }

/* Add float32 normals times `factor` to sums, then multiply these by `share`, from draw `first` to
 * `end`. It stops before a block with a radius word below `rare`, whose tail needs more bits, and
 * returns the draw that it came to. A block of words: BLOCK radii, BLOCK angles.
 *
 * u has 40 bits: its radius word, then the low 8 bits of the angle word. t has the high 22 bits,
 * signed; bits 8 and 9 are the signs. Minimax polynomials: tests/golden/noise_polynomials.py.
 */
EXPORT CLONES int64_t add_normals(const uint32_t *restrict words, float *restrict sums, int64_t first,
                                  int64_t end, float factor, float share, uint32_t rare)
{
    float draws[2 * BLOCK], *one = draws, *other = draws + BLOCK;
    for (int64_t at = first, next; at < end; at = next) {
        int64_t start = at - at % (2 * BLOCK);
        const uint32_t *restrict radii = words + start, *restrict angles = radii + BLOCK;
        uint32_t found = 0;
        for (int i = 0; i < BLOCK; i++) {
            uint32_t angle = angles[i];
            int32_t word = (int32_t)radii[i];
            found += radii[i] < rare;

            /* u = v / 2^32 for a word below 2^31, else 1 + v / 2^32 with v below 0. */
            float v = (float)word + ((float)(int32_t)(angle & 255) + 0.5f) * 0x1p-8f;
            uint32_t bits = float_bits(v);
            int32_t e = (int32_t)(bits - 0x3f3504f3u) >> 23; /* 0x3f3504f3 is sqrt(1/2) */
            float small_f = to_float(bits - ((uint32_t)e << 23)) - 1.0f;
            float below_one = v * 0x1p-32f;
            int near_one = below_one > -0.29289322f; /* sqrt(1/2) - 1 */
            float large_f = near_one ? below_one : 2.0f * below_one + 1.0f;
            float large_exponent = near_one ? 0.0f : -1.0f;
            int small = word >= 0;
            float f = small ? small_f : large_f;
            float exponent = small ? (float)(e - 32) : large_exponent;
            float g = 0.0872230381f;
            g = g * f - 0.143668294f;
            g = g * f + 0.149522796f;
            g = g * f - 0.165623963f;
            g = g * f + 0.199568331f;
            g = g * f - 0.250020742f;
            g = g * f + 0.333341867f;
            g = g * f - 0.499999881f;
            g = g * f + 1.0f;
            float r = sqrtf(-0.693147181f * exponent - g * f);

            float t = ((float)((int32_t)angle >> 10) + 0.5f) * 0x1p-21f, t2 = t * t;
            float sine = t * (((-3.5950452e-05f * t2 + 0.00249000103f) * t2 - 0.0807454363f) * t2 + 0.785398185f);
            float cosine = ((-0.000318727834f * t2 + 0.0158496834f) * t2 - 0.308424175f) * t2 + 0.99999994f;
            one[i] = to_float(float_bits(r * (cosine - sine)) ^ (angle << 23 & 0x80000000u));
            other[i] = to_float(float_bits(r * (cosine + sine)) ^ (angle << 22 & 0x80000000u));
        }
        if (found)
            return at;
        next = start + 2 * BLOCK < end ? start + 2 * BLOCK : end;
        for (int64_t i = at; i < next; i++)
            sums[i - first] = (sums[i - first] + factor * draws[i - start]) * share;
    }
    return end;
}

/* Add draws times `factor` to sums, with the rounding of the sum above. */
EXPORT CLONES int64_t add_scaled(float *restrict sums, const float *restrict draws, int64_t count,
                                 float factor)
{
    for (int64_t i = 0; i < count; i++)
        sums[i] = sums[i] + factor * draws[i];
    return count;
}

/* Normals of deviation `scale`, rounded to whole numbers: certainly right, or NaN.
 *
 * A block of words: BLOCK each of radius high, radius low, angle high, angle low. u has 64 bits.
 * t has 62 bits: the angle's high word holds the upper 30, then the signs. Low words are read as
 * signed, with 2^31 added.
 *
 * docs/mathematics/grid_noise.md bounds the error of a draw, in units of `scale`. A draw is NaN
 * if it lies within `margin` of a half, or if u is outside of the bounds that the page assumes:
 * below 2^-20, or within 2^-32 of 1. Returns the number of NaN; further bits decide these draws.
 */
EXPORT CLONES int64_t rounded_normals(const uint32_t *restrict words, double *restrict draws,
                                      int64_t blocks, double scale, double margin)
{
    const double to_integer = 0x1.8p52, edge = 0.5 - margin;
    int64_t undecided = 0;
    for (int64_t block = 0; block < blocks; block++) {
        const uint32_t *restrict radii = words + 4 * BLOCK * block;
        const uint32_t *restrict radii_low = radii + BLOCK;
        const uint32_t *restrict angles = radii + 2 * BLOCK, *restrict angles_low = radii + 3 * BLOCK;
        double *restrict one = draws + 2 * BLOCK * block, *restrict other = one + BLOCK;
        for (int i = 0; i < BLOCK; i++) {
            int32_t word = (int32_t)radii[i], angle = (int32_t)angles[i];

            /* As above: u = v / 2^32, else 1 + v / 2^32. */
            double v = (double)word + ((double)(int32_t)radii_low[i] + (0x1p31 + 0.5)) * 0x1p-32;
            double below_one = v * 0x1p-32;
            int near_one = below_one > -0.29289321881345248;
            /* The exponent is shifted unsigned, with 1024 added; as an integer below 2^52 it
             * becomes a double through the bits of 2^52. */
            uint64_t bits = double_bits(v);
            uint64_t e = (bits - 0x3fe6a09e667f3bcdull + (1024ull << 52)) >> 52;
            double small_f = to_double(bits - (e << 52) + (1024ull << 52)) - 1.0;
            double small_exponent = to_double(0x4330000000000000ull | e) - (0x1p52 + 1024 + 32);
            double large_f = near_one ? below_one : 2.0 * below_one + 1.0;
            double large_exponent = near_one ? 0.0 : -1.0;
            int small = word >= 0;
            double f = small ? small_f : large_f;
            double exponent = small ? small_exponent : large_exponent;
            /* ln(1 + f) = 2 artanh(s) = 2 s g(s^2) */
            double s = f / (2.0 + f), z = s * s;
            double g = 0x1.58d998bf9e46fp-4;
            g = g * z + 0x1.7322cb9204aa5p-4;
            g = g * z + 0x1.c722cfbfd4c9bp-4;
            g = g * z + 0x1.249240b2f2069p-3;
            g = g * z + 0x1.999999a43eb95p-3;
            g = g * z + 0x1.5555555552d1ep-2;
            g = g * z + 0x1.0000000000001p+0;
            double r = scale * sqrt(-0.69314718055994531 * exponent - 2.0 * s * g);

            double t = ((double)(angle >> 2) * 0x1p32
                        + ((double)(int32_t)angles_low[i] + (0x1p31 + 0.5))) * 0x1p-61;
            double y = t * 0.78539816339744831, q = y * y;
            double sine = 0x1.5d87732d7eadap-33;
            sine = sine * q - 0x1.ae5e380bb0f29p-26;
            sine = sine * q + 0x1.71de3530db2e8p-19;
            sine = sine * q - 0x1.a01a019ba995ap-13;
            sine = sine * q + 0x1.111111110f3dep-7;
            sine = sine * q - 0x1.5555555555543p-3;
            sine = sine * q * y + y;
            double cosine = 0x1.1b8aff7a0bec8p-29;
            cosine = cosine * q - 0x1.27df402fc9760p-22;
            cosine = cosine * q + 0x1.a019f7fdefcc2p-16;
            cosine = cosine * q - 0x1.6c16c163c62c8p-10;
            cosine = cosine * q + 0x1.555555554e7f5p-5;
            cosine = cosine * q - 0x1.fffffffffff79p-2;
            cosine = cosine * q + 1.0;

            double x = r * (cosine - sine), rounded = (x + to_integer) - to_integer;
            double x2 = r * (cosine + sine), rounded2 = (x2 + to_integer) - to_integer;
            int rare = (uint32_t)word + 1u <= 4096u;
            int open = (fabs(x - rounded) >= edge) | rare;
            int open2 = (fabs(x2 - rounded2) >= edge) | rare;
            double signed1 = angle & 1 ? -rounded : rounded;
            double signed2 = angle & 2 ? -rounded2 : rounded2;
            one[i] = open ? NAN : signed1;
            other[i] = open2 ? NAN : signed2;
            undecided += open + open2;
        }
    }
    return undecided;
}

/* Round sums to multiples of `grid`, a power of two, add whole numbers of grid steps, and multiply
 * by `share`. A float beyond 2^24 grid steps is a whole number of them. Returns the number of sums that are
 * not finite or beyond 2^52 grid steps, for which the result is meaningless.
 */
EXPORT CLONES int64_t add_units(float *restrict sums, const double *restrict units, int64_t count,
                                double grid, float share)
{
    const double to_integer = 0x1.8p52, per_step = 1.0 / grid;
    int64_t refused = 0;
    for (int64_t i = 0; i < count; i++) {
        double x = (double)sums[i] * per_step;
        double rounded = fabs(x) < 0x1p40 ? (x + to_integer) - to_integer : x;
        refused += !(fabs(x) <= 0x1p52);
        sums[i] = (float)((rounded + units[i]) * grid) * share;
    }
    return refused;
}

#ifndef PLAIN
/* An empty module, for whoever imports all modules; the program loads the functions by ctypes. */
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_kernels", .m_size = -1};
PyMODINIT_FUNC PyInit__kernels(void) { return PyModule_Create(&module); }
#endif
