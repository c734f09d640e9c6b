// Convolutions by oneDNN, for XLA on CPU: images NHWC, kernels HWIO, float32 or bfloat16.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <string>

#include "execution.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using Span = ffi::Span<const int64_t>;

namespace {

ffi::Error Run(Key key, const ffi::ThreadPool& pool, const ffi::AnyBuffer& x, const ffi::AnyBuffer& k,
               const ffi::AnyBuffer& y, void* bias, Span strides, Span padding, Span dilation) {
  key[1] = x.element_type() == ffi::DataType::BF16;
  auto* end = &key[5];
  for (auto span : {x.dimensions(), k.dimensions(), y.dimensions(), strides, padding, dilation})
    end = std::copy(span.begin(), span.end(), end);
  Arrays arrays{x.untyped_data(), k.untyped_data(), y.untyped_data(), bias};
  try {
    Execution(key, FindCall(key, pool.num_threads()), arrays, false).Run();
    return ffi::Error::Success();
  } catch (const std::exception& error) {
    return ffi::Error::Internal(std::string("oneDNN: ") + error.what());
  }
}

// `rest` is the bias, if there is one, and the summand, if there is one.
ffi::Error Forward(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer kernel,
                   ffi::RemainingArgs rest, ffi::Result<ffi::AnyBuffer> y, Span strides,
                   Span padding, Span dilation, bool has_bias, bool relu) {
  bool sum = rest.size() > (has_bias ? 1 : 0);
  void* bias = has_bias ? rest.get<ffi::AnyBuffer>(0)->untyped_data() : nullptr;
  if (sum) {
    auto summand = rest.get<ffi::AnyBuffer>(has_bias);
    if (summand->untyped_data() != y->untyped_data())
      std::memcpy(y->untyped_data(), summand->untyped_data(), summand->size_bytes());
  }
  Key key{kForward, 0, has_bias, sum, relu};
  return Run(key, pool, x, kernel, *y, bias, strides, padding, dilation);
}

ffi::Error InputGradient(ffi::ThreadPool pool, ffi::AnyBuffer kernel, ffi::AnyBuffer gradient,
                         ffi::Result<ffi::AnyBuffer> x, Span strides, Span padding,
                         Span dilation) {
  Key key{kInputGradient};
  return Run(key, pool, *x, kernel, gradient, nullptr, strides, padding, dilation);
}

ffi::Error KernelGradient(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer gradient,
                          ffi::Result<ffi::AnyBuffer> kernel, Span strides, Span padding,
                          Span dilation) {
  Key key{kKernelGradient};
  return Run(key, pool, x, *kernel, gradient, nullptr, strides, padding, dilation);
}

auto ForwardBinding() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .RemainingArgs()
      .Ret<ffi::AnyBuffer>()
      .Attr<Span>("strides")
      .Attr<Span>("padding")
      .Attr<Span>("dilation")
      .Attr<bool>("has_bias")
      .Attr<bool>("relu");
}

auto GradientBinding() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .Ret<ffi::AnyBuffer>()
      .Attr<Span>("strides")
      .Attr<Span>("padding")
      .Attr<Span>("dilation");
}

std::string InstructionSet() {
  switch (auto isa = dnnl_get_effective_cpu_isa()) {
    case dnnl_cpu_isa_sse41: return "SSE4.1";
    case dnnl_cpu_isa_avx: return "AVX";
    case dnnl_cpu_isa_avx2: return "AVX2";
    case dnnl_cpu_isa_avx2_vnni: return "AVX2-VNNI";
    case dnnl_cpu_isa_avx512_core: return "AVX-512";
    case dnnl_cpu_isa_avx512_core_vnni: return "AVX-512-VNNI";
    case dnnl_cpu_isa_avx512_core_bf16: return "AVX-512-BF16";
    case dnnl_cpu_isa_avx512_core_amx: return "AMX";
    default: return std::to_string(isa);  // of a later version
  }
}

Key ToKey(const int64_t* numbers) {
  Key key;
  std::copy(numbers, numbers + key.size(), key.begin());
  return key;
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(resnet_jax_forward, Forward, ForwardBinding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(resnet_jax_input_gradient, InputGradient, GradientBinding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(resnet_jax_kernel_gradient, KernelGradient, GradientBinding());

// Whether oneDNN has a kernel for a problem, given as the numbers of a Key: 1 or 0.
extern "C" int resnet_jax_supports(const int64_t* problem) {
  try {
    FindCall(ToKey(problem), 0);
    return 1;
  } catch (const std::exception&) {
    return 0;
  }
}

// For checks, without XLA: computes with `poison`, on oneDNN's own threads or, if there are any, in
// parts for so many threads; returns 1, or 0 where oneDNN fails.
extern "C" int resnet_jax_try(const int64_t* problem, int64_t threads, void* x, void* kernel,
                              void* y, void* bias) {
  try {
    auto key = ToKey(problem);
    Execution(key, FindCall(key, threads), {x, kernel, y, bias}, true).Run();
    return 1;
  } catch (const std::exception&) {
    return 0;
  }
}

// Version and build of the oneDNN that was loaded, and the instruction set that it uses.
extern "C" const char* resnet_jax_describe_onednn() {
  static const std::string text = [] {
    const dnnl_version_t& v = *dnnl_version();
    auto number = [](int part) { return std::to_string(part); };
    return number(v.major) + "." + number(v.minor) + "." + number(v.patch) + " " + v.hash + " " +
           InstructionSet();
  }();
  return text.c_str();
}
