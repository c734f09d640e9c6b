// Convolutions by oneDNN, for XLA on CPU: images NHWC, kernels HWIO, float32 or bfloat16.
//
// XLA's own convolutions on CPU reach a third of what oneDNN does. Images and gradients keep their
// layout; kernels, which are small, are brought into the blocked one that oneDNN chooses.

#include <oneapi/dnnl/dnnl.hpp>

#include <cstdint>
#include <exception>

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

memory::data_type Type(ffi::DataType type) {
  return type == ffi::DataType::BF16 ? memory::data_type::bf16 : memory::data_type::f32;
}

// An array as it lies in XLA: NHWC for images, HWIO for kernels; oneDNN names dimensions NCHW, OIHW.
struct Array {
  memory::desc desc;
  void* data;

  static Array Image(const ffi::AnyBuffer& buffer) {
    auto d = buffer.dimensions();
    return {{{d[0], d[3], d[1], d[2]}, Type(buffer.element_type()), Tag::nhwc},
            buffer.untyped_data()};
  }

  static Array Kernel(const ffi::AnyBuffer& buffer) {
    auto d = buffer.dimensions();
    return {{{d[3], d[2], d[0], d[1]}, Type(buffer.element_type()), Tag::hwio},
            buffer.untyped_data()};
  }

  // The same array in whatever layout is best.
  memory::desc AnyLayout() const {
#if DNNL_VERSION_MAJOR >= 3
    return {desc.get_dims(), desc.get_data_type(), Tag::any};
#else
    return {desc.dims(), desc.data_type(), Tag::any};
#endif
  }

  memory Memory() const { return memory(desc, Engine(), data); }
};

struct Window {
  memory::dims strides, dilation, low, high;

  // Padding is (above, below, left, right); a dilation of 1 is oneDNN's 0.
  Window(Span strides, Span padding, Span dilation)
      : strides{strides[0], strides[1]},
        dilation{dilation[0] - 1, dilation[1] - 1},
        low{padding[0], padding[2]},
        high{padding[1], padding[3]} {}
};

constexpr auto kAlgorithm = dnnl::algorithm::convolution_direct;
constexpr auto kTraining = dnnl::prop_kind::forward_training;

dnnl::convolution_forward::primitive_desc ForwardPlan(const Array& x, const Array& kernel,
                                                      const Array& y, const Window& w) {
#if DNNL_VERSION_MAJOR >= 3
  return {Engine(), kTraining, kAlgorithm, x.desc, kernel.AnyLayout(), y.desc,
          w.strides, w.dilation, w.low, w.high};
#else
  return {{kTraining, kAlgorithm, x.desc, kernel.AnyLayout(), y.desc, w.strides, w.dilation,
           w.low, w.high},
          Engine()};
#endif
}

// A kernel in the layout of a plan.
memory InLayout(memory kernel, const memory::desc& desc, dnnl::stream& stream) {
  if (kernel.get_desc() == desc) return kernel;
  memory blocked(desc, Engine());
  dnnl::reorder(kernel, blocked).execute(stream, kernel, blocked);
  return blocked;
}

template <typename Work>
ffi::Error Guarded(Work work) {
  try {
    dnnl::stream stream(Engine());
    work(stream);
    stream.wait();
    return ffi::Error::Success();
  } catch (const std::exception& error) {
    return ffi::Error::Internal(error.what());
  }
}

ffi::Error Forward(ffi::AnyBuffer x, ffi::AnyBuffer kernel, ffi::Result<ffi::AnyBuffer> y,
                   Span strides, Span padding, Span dilation) {
  return Guarded([&](dnnl::stream& stream) {
    auto source = Array::Image(x), weights = Array::Kernel(kernel), result = Array::Image(*y);
    auto plan = ForwardPlan(source, weights, result, Window(strides, padding, dilation));
    dnnl::convolution_forward(plan).execute(
        stream, {{DNNL_ARG_SRC, source.Memory()},
                 {DNNL_ARG_WEIGHTS, InLayout(weights.Memory(), plan.weights_desc(), stream)},
                 {DNNL_ARG_DST, result.Memory()}});
  });
}

ffi::Error InputGradient(ffi::AnyBuffer kernel, ffi::AnyBuffer gradient,
                         ffi::Result<ffi::AnyBuffer> x, Span strides, Span padding,
                         Span dilation) {
  return Guarded([&](dnnl::stream& stream) {
    auto result = Array::Image(*x), weights = Array::Kernel(kernel), of = Array::Image(gradient);
    Window w(strides, padding, dilation);
    auto hint = ForwardPlan(result, weights, of, w);
#if DNNL_VERSION_MAJOR >= 3
    dnnl::convolution_backward_data::primitive_desc plan(
        Engine(), kAlgorithm, result.desc, weights.AnyLayout(), of.desc, w.strides, w.dilation,
        w.low, w.high, hint);
#else
    dnnl::convolution_backward_data::primitive_desc plan(
        {kAlgorithm, result.desc, weights.AnyLayout(), of.desc, w.strides, w.dilation, w.low,
         w.high},
        Engine(), hint);
#endif
    dnnl::convolution_backward_data(plan).execute(
        stream, {{DNNL_ARG_DIFF_DST, of.Memory()},
                 {DNNL_ARG_WEIGHTS, InLayout(weights.Memory(), plan.weights_desc(), stream)},
                 {DNNL_ARG_DIFF_SRC, result.Memory()}});
  });
}

ffi::Error KernelGradient(ffi::AnyBuffer x, ffi::AnyBuffer gradient,
                          ffi::Result<ffi::AnyBuffer> kernel, Span strides, Span padding,
                          Span dilation) {
  return Guarded([&](dnnl::stream& stream) {
    auto source = Array::Image(x), result = Array::Kernel(*kernel), of = Array::Image(gradient);
    Window w(strides, padding, dilation);
    auto hint = ForwardPlan(source, result, of, w);
#if DNNL_VERSION_MAJOR >= 3
    dnnl::convolution_backward_weights::primitive_desc plan(
        Engine(), kAlgorithm, source.desc, result.AnyLayout(), of.desc, w.strides, w.dilation,
        w.low, w.high, hint);
#else
    dnnl::convolution_backward_weights::primitive_desc plan(
        {kAlgorithm, source.desc, result.AnyLayout(), of.desc, w.strides, w.dilation, w.low,
         w.high},
        Engine(), hint);
#endif
    auto target = result.Memory();
    auto blocked = target.get_desc() == plan.diff_weights_desc()
                       ? target
                       : memory(plan.diff_weights_desc(), Engine());
    dnnl::convolution_backward_weights(plan).execute(stream,
                                                     {{DNNL_ARG_SRC, source.Memory()},
                                                      {DNNL_ARG_DIFF_DST, of.Memory()},
                                                      {DNNL_ARG_DIFF_WEIGHTS, blocked}});
    if (target.get_desc() != blocked.get_desc())
      dnnl::reorder(blocked, target).execute(stream, blocked, target);
  });
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
