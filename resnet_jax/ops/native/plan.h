// A convolution, or one of its gradients, as a primitive of oneDNN.
//
// Images and gradients keep their layout. Kernels, which are small, are reordered into the blocked
// layout that oneDNN chooses. A convolution may end with a bias, the sum with an array of the result's
// shape, and ReLU. NaN stays NaN, as in XLA's maximum with 0.

#pragma once

#include <oneapi/dnnl/dnnl.hpp>

#include <array>
#include <cstdint>
#include <cstring>
#include <limits>

using dnnl::memory;
using Tag = memory::format_tag;

inline const dnnl::engine& Engine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

enum Kind { kForward, kInputGradient, kKernelGradient };

// All that is static of a call, as 25 numbers: kind, whether bfloat16, whether the features get a
// bias, a sum and ReLU, the shapes of images (NHWC), kernel (HWIO) and features (NHWC), strides,
// padding (above, below, left, right), dilation.
using Key = std::array<int64_t, 25>;

struct Problem {
  Kind kind;
  memory::data_type type;
  bool bias, sum, relu;
  memory::dims x, kernel, y, strides, padding, dilation;

  explicit Problem(const Key& key)
      : kind(static_cast<Kind>(key[0])),
        type(key[1] ? memory::data_type::bf16 : memory::data_type::f32),
        bias(key[2]),
        sum(key[3]),
        relu(key[4]),
        x(&key[5], &key[9]),
        kernel(&key[9], &key[13]),
        y(&key[13], &key[17]),
        strides(&key[17], &key[19]),
        padding(&key[19], &key[23]),
        dilation(&key[23], &key[23] + 2) {}

  // oneDNN names dimensions in the order of NCHW and OIHW, whatever the layout in memory.
  memory::desc Image(const memory::dims& d) const {
    return {{d[0], d[3], d[1], d[2]}, type, Tag::nhwc};
  }
  memory::desc Kernel(Tag layout) const { return Kernel(layout, type); }
  memory::desc Kernel(Tag layout, memory::data_type of) const {
    return {{kernel[3], kernel[2], kernel[0], kernel[1]}, of, layout};
  }
  memory::desc Bias() const {  // float32 for every type
    if (!bias) return {};
    return {{kernel[3]}, memory::data_type::f32, Tag::a};
  }
};

// Whether some tap of the kernel meets padding only, along height (axis 0) or width (1).
inline bool HasIdleTap(const Problem& p, int axis) {
  int64_t size = p.x[1 + axis], outputs = p.y[1 + axis];
  for (int64_t tap = 0; tap < p.kernel[axis]; ++tap) {
    bool meets = false;
    for (int64_t output = 0; output < outputs && !meets; ++output) {
      int64_t at = tap * p.dilation[axis] + output * p.strides[axis] - p.padding[2 * axis];
      meets = 0 <= at && at < size;
    }
    if (!meets) return true;
  }
  return false;
}

// Whether a kernel of some oneDNN is wrong for such a problem (see check.py).
inline bool IsKnownToBeWrong(const Problem& p) {
  bool pointwise = p.kernel[0] == 1 && p.kernel[1] == 1;
  bool strided = p.strides[0] > 1 || p.strides[1] > 1;
  bool dilated = p.dilation[0] > 1 || p.dilation[1] > 1;
  // To make a strided image dense, 1x1 kernels copy whole vectors of channels. With fewer channels
  // than a vector holds, AVX2's gradient of the kernel sums what lies behind them, too.
  if (p.kind == kKernelGradient && pointwise && strided && p.kernel[2] < 16) return true;
  // bfloat16 kernels take channels in pairs; oneDNN 2.6's 1x1 ones read past an odd number of them.
  bool odd = p.kernel[2] % 2 || p.kernel[3] % 2;
  bool bfloat16 = p.type == memory::data_type::bf16;
  if (bfloat16 && pointwise && odd) return true;
  // The gradient of a tap that meets padding only is zero; oneDNN 3.2 on AVX-512 leaves some of them
  // unwritten, or computes them from memory that it never wrote.
  bool idle = HasIdleTap(p, 0) || HasIdleTap(p, 1);
  if (bfloat16 && p.kind == kKernelGradient && idle) return true;
  // oneDNN 3.1's forward pass on AVX2 reads memory that it never wrote.
  return strided && dilated;
}

// A primitive, ready to be run by any thread; making one takes a fraction of a millisecond.
//
// Its scratchpad is given to it at each call. By default oneDNN keeps one for each thread that makes
// a primitive, and XLA runs the primitive on other threads.
struct Plan {
  memory::desc image, kernel, blocked_kernel, bias, features, scratchpad, reorder_scratchpad;
  dnnl::primitive primitive;
  dnnl::primitive reorder;  // of the kernel into the blocked layout, or of its gradient out of it
  bool reorders;
};

constexpr auto kAlgorithm = dnnl::algorithm::convolution_direct;
constexpr auto kTraining = dnnl::prop_kind::forward_training;

// The constructors of oneDNN 2 take a description, those of oneDNN 3 its parts.
#if DNNL_VERSION_MAJOR >= 3
#define DESCRIBE_FORWARD(engine, attributes, ...) {engine, __VA_ARGS__, attributes}
#define DESCRIBE_BACKWARD(engine, attributes, hint, ...) {engine, __VA_ARGS__, hint, attributes}
#else
#define DESCRIBE_FORWARD(engine, attributes, ...) {{__VA_ARGS__}, attributes, engine}
#define DESCRIBE_BACKWARD(engine, attributes, hint, ...) {{__VA_ARGS__}, attributes, engine, hint}
#endif

// oneDNN's own ReLU turns NaN into 0. x · min(max(ax, 0), 1) with the largest float32 a is ReLU for
// all normal x, and keeps NaN; minus infinity becomes NaN.
inline void AppendRelu(dnnl::post_ops& after) {
#if DNNL_VERSION_MAJOR >= 3
  constexpr float steepest = std::numeric_limits<float>::max();
  after.append_eltwise(dnnl::algorithm::eltwise_hardswish, steepest, 0.f);
#else  // whose hardswish has fixed coefficients
  throw dnnl::error(dnnl_unimplemented, "there is no ReLU that keeps NaN");
#endif
}

template <class Descriptor>
void SetPrimitive(Plan& plan, const Descriptor& descriptor, const memory::desc& blocked_kernel) {
  // Of several implementations oneDNN offers the fastest first; the last one is a plain loop.
  if (std::strncmp(descriptor.impl_info_str(), "ref", 3) == 0)
    throw dnnl::error(dnnl_unimplemented, "there is only a reference implementation");
  plan.primitive = dnnl::primitive(descriptor.get());
  plan.scratchpad = descriptor.scratchpad_desc();
  plan.blocked_kernel = blocked_kernel;
}

inline Plan MakePlan(const Problem& p) {
  if (IsKnownToBeWrong(p)) throw dnnl::error(dnnl_unimplemented, "known to be wrong");
  Plan plan;
  auto image = plan.image = p.Image(p.x);
  auto features = plan.features = p.Image(p.y);
  plan.kernel = p.Kernel(Tag::hwio);
  auto kernel = p.Kernel(Tag::any);
  memory::dims dilation{p.dilation[0] - 1, p.dilation[1] - 1};  // oneDNN counts from 0
  memory::dims low{p.padding[0], p.padding[2]}, high{p.padding[1], p.padding[3]};
  dnnl::primitive_attr attributes, forward_attributes;  // copies would share their contents
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  forward_attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  dnnl::post_ops after;
  if (p.sum) after.append_sum(1.f);
  if (p.relu) AppendRelu(after);
  forward_attributes.set_post_ops(after);
  plan.bias = p.Bias();

  using Forward = dnnl::convolution_forward;
  using BackwardData = dnnl::convolution_backward_data;
  using BackwardWeights = dnnl::convolution_backward_weights;
  Forward::primitive_desc forward DESCRIBE_FORWARD(Engine(), forward_attributes, kTraining,
                                                   kAlgorithm, image, kernel, plan.bias, features,
                                                   p.strides, dilation, low, high);
  if (p.kind == kForward) {
    SetPrimitive(plan, forward, forward.weights_desc());
  } else if (p.kind == kInputGradient) {
    BackwardData::primitive_desc backward DESCRIBE_BACKWARD(Engine(), attributes, forward,
                                                            kAlgorithm, image, kernel, features,
                                                            p.strides, dilation, low, high);
    SetPrimitive(plan, backward, backward.weights_desc());
  } else {  // the sums of parts are rounded once
    kernel = p.Kernel(Tag::any, memory::data_type::f32);
    BackwardWeights::primitive_desc backward DESCRIBE_BACKWARD(Engine(), attributes, forward,
                                                               kAlgorithm, image, kernel, features,
                                                               p.strides, dilation, low, high);
    SetPrimitive(plan, backward, backward.diff_weights_desc());
  }
  plan.reorders = plan.blocked_kernel != plan.kernel;
  if (plan.reorders) {
    auto& from = p.kind == kKernelGradient ? plan.blocked_kernel : plan.kernel;
    auto& to = p.kind == kKernelGradient ? plan.kernel : plan.blocked_kernel;
    dnnl::reorder::primitive_desc reorder(Engine(), from, Engine(), to, attributes);
    plan.reorder = dnnl::reorder(reorder);
    plan.reorder_scratchpad = reorder.scratchpad_desc();
  }
  return plan;
}
