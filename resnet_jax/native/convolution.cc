// Convolutions by oneDNN, for XLA on CPU: images NHWC, kernels HWIO, float32 or bfloat16.
//
// These are faster than XLA's own on CPU. Images and gradients keep their layout; kernels, which are
// small, are brought into the blocked one that oneDNN chooses.

#include <oneapi/dnnl/dnnl.hpp>

#include <cstdint>
#include <exception>
#include <map>
#include <mutex>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using dnnl::memory;
using Tag = memory::format_tag;
using Span = ffi::Span<const int64_t>;

namespace {

const dnnl::engine& Engine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

memory::data_type Type(const ffi::AnyBuffer& buffer) {
  return buffer.element_type() == ffi::DataType::BF16 ? memory::data_type::bf16
                                                      : memory::data_type::f32;
}

// Arrays as they lie in XLA: NHWC and HWIO. oneDNN names their dimensions in the order of NCHW and
// OIHW, whatever the layout; with Tag::any it may choose that.
memory::desc Image(const ffi::AnyBuffer& buffer) {
  auto d = buffer.dimensions();
  return {{d[0], d[3], d[1], d[2]}, Type(buffer), Tag::nhwc};
}

memory::desc Kernel(const ffi::AnyBuffer& buffer, Tag layout) {
  auto d = buffer.dimensions();
  return {{d[3], d[2], d[0], d[1]}, Type(buffer), layout};
}

struct Window {
  memory::dims strides, dilation, low, high;

  // Padding is (above, below, left, right); a dilation of 1 is oneDNN's 0.
  Window(Span strides, Span padding, Span dilation)
      : strides{strides[0], strides[1]},
        dilation{dilation[0] - 1, dilation[1] - 1},
        low{padding[0], padding[2]},
        high{padding[1], padding[3]} {}
};

// A convolution or one of its gradients, ready to be run: to make one takes a fraction of a
// millisecond, of which a network has dozens.
struct Plan {
  dnnl::primitive primitive;
  memory::desc image, kernel, blocked_kernel, features;
  dnnl::primitive reorder;  // of the kernel, into the blocked layout or, for its gradient, out of it
  bool reorders;
};

enum Kind { kForward, kInputGradient, kKernelGradient };

constexpr auto kAlgorithm = dnnl::algorithm::convolution_direct;
constexpr auto kTraining = dnnl::prop_kind::forward_training;

Plan MakePlan(Kind kind, const ffi::AnyBuffer& x, const ffi::AnyBuffer& k, const ffi::AnyBuffer& y,
              const Window& w) {
  Plan plan;
  plan.image = Image(x), plan.kernel = Kernel(k, Tag::hwio), plan.features = Image(y);
  auto any = Kernel(k, Tag::any);
#if DNNL_VERSION_MAJOR >= 3
  dnnl::convolution_forward::primitive_desc forward(Engine(), kTraining, kAlgorithm, plan.image,
                                                    any, plan.features, w.strides, w.dilation,
                                                    w.low, w.high);
#else
  dnnl::convolution_forward::primitive_desc forward(
      {kTraining, kAlgorithm, plan.image, any, plan.features, w.strides, w.dilation, w.low, w.high},
      Engine());
#endif
  if (kind == kForward) {
    plan.primitive = dnnl::convolution_forward(forward);
    plan.blocked_kernel = forward.weights_desc();
  } else if (kind == kInputGradient) {
#if DNNL_VERSION_MAJOR >= 3
    dnnl::convolution_backward_data::primitive_desc backward(
        Engine(), kAlgorithm, plan.image, any, plan.features, w.strides, w.dilation, w.low, w.high,
        forward);
#else
    dnnl::convolution_backward_data::primitive_desc backward(
        {kAlgorithm, plan.image, any, plan.features, w.strides, w.dilation, w.low, w.high},
        Engine(), forward);
#endif
    plan.primitive = dnnl::convolution_backward_data(backward);
    plan.blocked_kernel = backward.weights_desc();
  } else {
#if DNNL_VERSION_MAJOR >= 3
    dnnl::convolution_backward_weights::primitive_desc backward(
        Engine(), kAlgorithm, plan.image, any, plan.features, w.strides, w.dilation, w.low, w.high,
        forward);
#else
    dnnl::convolution_backward_weights::primitive_desc backward(
        {kAlgorithm, plan.image, any, plan.features, w.strides, w.dilation, w.low, w.high},
        Engine(), forward);
#endif
    plan.primitive = dnnl::convolution_backward_weights(backward);
    plan.blocked_kernel = backward.diff_weights_desc();
  }
  plan.reorders = plan.blocked_kernel != plan.kernel;
  if (plan.reorders) {
    auto& from = kind == kKernelGradient ? plan.blocked_kernel : plan.kernel;
    auto& to = kind == kKernelGradient ? plan.kernel : plan.blocked_kernel;
    plan.reorder = dnnl::reorder(dnnl::reorder::primitive_desc(Engine(), from, Engine(), to));
  }
  return plan;
}

// The plan of these shapes, made once in a process.
const Plan& FindPlan(Kind kind, const ffi::AnyBuffer& x, const ffi::AnyBuffer& k,
                     const ffi::AnyBuffer& y, Span strides, Span padding, Span dilation) {
  static std::mutex mutex;
  static std::map<std::vector<int64_t>, Plan> plans;
  std::vector<int64_t> key{kind, static_cast<int64_t>(x.element_type())};
  for (auto span : {x.dimensions(), k.dimensions(), strides, padding, dilation})
    key.insert(key.end(), span.begin(), span.end());
  std::lock_guard<std::mutex> lock(mutex);
  auto found = plans.find(key);
  if (found == plans.end()) {
    Window window(strides, padding, dilation);
    found = plans.emplace(key, MakePlan(kind, x, k, y, window)).first;
  }
  return found->second;
}

ffi::Error Run(Kind kind, const ffi::AnyBuffer& x, const ffi::AnyBuffer& k, const ffi::AnyBuffer& y,
               Span strides, Span padding, Span dilation) {
  try {
    const Plan& plan = FindPlan(kind, x, k, y, strides, padding, dilation);
    dnnl::stream stream(Engine());
    memory image(plan.image, Engine(), x.untyped_data());
    memory kernel(plan.kernel, Engine(), k.untyped_data());
    memory features(plan.features, Engine(), y.untyped_data());
    memory blocked = plan.reorders ? memory(plan.blocked_kernel, Engine()) : kernel;
    if (kind == kKernelGradient) {
      plan.primitive.execute(stream, {{DNNL_ARG_SRC, image},
                                      {DNNL_ARG_DIFF_DST, features},
                                      {DNNL_ARG_DIFF_WEIGHTS, blocked}});
      if (plan.reorders)
        plan.reorder.execute(stream, {{DNNL_ARG_FROM, blocked}, {DNNL_ARG_TO, kernel}});
    } else {
      if (plan.reorders)
        plan.reorder.execute(stream, {{DNNL_ARG_FROM, kernel}, {DNNL_ARG_TO, blocked}});
      bool forward = kind == kForward;
      plan.primitive.execute(stream,
                             {{forward ? DNNL_ARG_SRC : DNNL_ARG_DIFF_SRC, image},
                              {DNNL_ARG_WEIGHTS, blocked},
                              {forward ? DNNL_ARG_DST : DNNL_ARG_DIFF_DST, features}});
    }
    stream.wait();
    return ffi::Error::Success();
  } catch (const std::exception& error) {
    return ffi::Error::Internal(error.what());
  }
}

ffi::Error Forward(ffi::AnyBuffer x, ffi::AnyBuffer kernel, ffi::Result<ffi::AnyBuffer> y,
                   Span strides, Span padding, Span dilation) {
  return Run(kForward, x, kernel, *y, strides, padding, dilation);
}

ffi::Error InputGradient(ffi::AnyBuffer kernel, ffi::AnyBuffer gradient,
                         ffi::Result<ffi::AnyBuffer> x, Span strides, Span padding,
                         Span dilation) {
  return Run(kInputGradient, *x, kernel, gradient, strides, padding, dilation);
}

ffi::Error KernelGradient(ffi::AnyBuffer x, ffi::AnyBuffer gradient,
                          ffi::Result<ffi::AnyBuffer> kernel, Span strides, Span padding,
                          Span dilation) {
  return Run(kKernelGradient, x, *kernel, gradient, strides, padding, dilation);
}

auto Binding() {
  return ffi::Ffi::Bind()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .Ret<ffi::AnyBuffer>()
      .Attr<Span>("strides")
      .Attr<Span>("padding")
      .Attr<Span>("dilation");
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(resnet_jax_forward, Forward, Binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(resnet_jax_input_gradient, InputGradient, Binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(resnet_jax_kernel_gradient, KernelGradient, Binding());
