// SPDX-License-Identifier: Apache-2.0
// Every float32 through exp, exp2 and log of ir_core.ops.elementary, twice: with the processor's fused multiply-add, and
// with the sum in float64 that the Python definition uses in its place. They must agree in every bit. The error is that
// against the C library's float64 functions, in units in the last place.
//
//   cc -O2 -march=native -ffp-contract=off -o elementary_exhaustive benchmarks/elementary_exhaustive.c -lm
//   ./elementary_exhaustive              (a few minutes; exit status 1 if a bit differs)
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static inline float as_float(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
static inline uint32_t as_bits(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }
static inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static inline float wide(float a, float b, float c) { return (float)((double)a * (double)b + (double)c); }

static const float ROUND = 12582912.0f, LOG2_E = 1.4426950216293335f, LN2 = 0.6931471824645996f;
static const float LN2_HIGH = 0.693359375f, LN2_LOW = -0.00021219444170128554f;
static const float EXP[7] = {1.0f, 1.0f, 0.4999999403953552f, 0.1666652113199234f, 0.04166825860738754f,
                             0.008368666283786297f, 0.0013821196043863893f};
static const float EXP2[4][7] = {
    {1.0f, 0.6932829022407532f, 0.24221095442771912f, 0.05500904470682144f},
    {1.0f, 0.6931241750717163f, 0.2402409166097641f, 0.0559065118432045f, 0.00958317331969738f},
    {1.0f, 0.6931470036506653f, 0.24022246897220612f, 0.0555071085691452f, 0.009671292267739773f,
     0.0013269535265862942f},
    {1.0f, 0.6931471824645996f, 0.24022647738456726f, 0.05550359934568405f, 0.009618505835533142f,
     0.0013390806270763278f, 0.0001532646274426952f}};
static const float LOG[9] = {-0.5f, 0.3333321511745453f, -0.2499980628490448f, 0.2001042664051056f,
                             -0.16680197417736053f, 0.14005732536315918f, -0.12187445908784866f,
                             0.1398460865020752f, -0.12880222499370575f};

static inline float clamp(float x, float low, float high) { return x < low ? low : x > high ? high : x; }

static inline float scaled(float p, float n) {
  float power = as_float((uint32_t)((int32_t)n + 127) << 23);
  return n > 127.0f ? p * 2.0f * 0x1p127f : p * power;
}

#define DEFINE(fma)                                                                             \
  static inline float horner_##fma(float x, const float *c, int degree) {                       \
    float p = c[degree];                                                                        \
    for (int i = degree - 1; i >= 0; i--) p = fma(p, x, c[i]);                                  \
    return p;                                                                                   \
  }                                                                                             \
  static inline float value_##fma(int which, float x) {                                         \
    if (which == 0) {                                                                           \
      x = clamp(x, -88.0f, 89.0f);                                                              \
      float n = fma(x, LOG2_E, ROUND) - ROUND;                                                  \
      float r = fma(n, -LN2_LOW, fma(n, -LN2_HIGH, x));                                         \
      return scaled(horner_##fma(r, EXP, 6), n);                                                \
    }                                                                                           \
    if (which > 1) {                                                                            \
      x = clamp(x, -127.0f, 128.0f);                                                            \
      float n = (x + ROUND) - ROUND;                                                            \
      return scaled(horner_##fma(x - n, EXP2[which - 3], which), n);                            \
    }                                                                                           \
    int small = x < 0x1p-126f;                                                                  \
    int32_t bits = (int32_t)as_bits(small ? x * 0x1p23f : x), e = (bits - 0x3F2AAAAB) >> 23;    \
    float f = as_float((uint32_t)bits - ((uint32_t)e << 23)) - 1.0f;                            \
    return fma((float)(small ? e - 23 : e), LN2, fma(horner_##fma(f, LOG, 8), f * f, f));       \
  }
DEFINE(fused)
DEFINE(wide)

static double unit(double v) {
  int exponent;
  frexp(v, &exponent);
  return ldexp(1.0, (exponent < -125 ? -125 : exponent) - 24);
}

int main(void) {
  const char *names[] = {"exp", "log", "", "exp2, 3 terms", "exp2, 4 terms", "exp2, 5 terms", "exp2, 6 terms"};
  int differ = 0;
  for (int which = 0; which < 7; which++) {
    if (which == 2) continue;
    uint64_t different = 0;
    double worst = 0, relative = 0;
    float at = 0;
    for (uint64_t i = 0; i < (1ull << 32); i++) {
      float x = as_float((uint32_t)i);
      if (x != x || (which == 1 && !(x > 0 && x < INFINITY))) continue;
      float value = value_fused(which, x);
      different += as_bits(value) != as_bits(value_wide(which, x));
      double exact;
      if (which == 0) {
        if (!(x >= -87.6831f && x < 88.72284f)) continue;
        exact = exp((double)x);
      } else if (which == 1) {
        exact = log((double)x);
      } else {
        if (!(x >= -126.5f && x < 128.0f)) continue;
        exact = exp2((double)x);
      }
      double error = fabs(value - exact);
      if (error > worst * unit(exact)) worst = error / unit(exact), at = x;
      if (exact >= 0x1p-126 && error > relative * exact) relative = error / exact;
    }
    printf("%-14s %llu bits differ; error at most %.4f units (at %a), relative %.3g\n", names[which],
           (unsigned long long)different, worst, at, relative);
    fflush(stdout);
    differ |= different != 0;
  }
  return differ;
}
