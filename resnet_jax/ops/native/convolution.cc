// Convolutions by oneDNN, for XLA on CPU: images NHWC, kernels HWIO, float32 or bfloat16.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <string>

#include "execution.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using Span = ffi::Span<const int64_t>;

namespace {

Key ToKey(const int64_t* numbers) {
  Key key;
  std::copy(numbers, numbers + key.size(), key.begin());
  return key;
}

ffi::Error Run(const std::function<void()>& function) {
  try {
    function();
    return ffi::Error::Success();
  } catch (const std::exception& error) {
    return ffi::Error::Internal(std::string("oneDNN: ") + error.what());
  }
}

ffi::Error Run(Key key, const ffi::ThreadPool& pool, const ffi::AnyBuffer& x, const ffi::AnyBuffer& k,
               const ffi::AnyBuffer& y, void* bias, Span strides, Span padding, Span dilation) {
  key[1] = x.element_type() == ffi::DataType::BF16;
  auto* end = &key[5];
  for (auto span : {x.dimensions(), k.dimensions(), y.dimensions(), strides, padding, dilation})
    end = std::copy(span.begin(), span.end(), end);
  Arrays arrays{x.untyped_data(), k.untyped_data(), y.untyped_data(), bias};
  return Run([&] { Execution(key, FindCall(key, pool.num_threads()), arrays, false).Run(); });
}

// The bias, null if there is none. Copies the summand, if there is one, to the result, unless XLA has
// given both the same memory.
void* BiasOf(const Key& key, ffi::RemainingArgs rest, const ffi::AnyBuffer& y) {
  bool bias = key[2], sum = key[3];
  if (sum) {
    auto summand = rest.get<ffi::AnyBuffer>(bias);
    if (summand->untyped_data() != y.untyped_data())
      std::memcpy(y.untyped_data(), summand->untyped_data(), summand->size_bytes());
  }
  return bias ? rest.get<ffi::AnyBuffer>(0)->untyped_data() : nullptr;
}

// `rest` is the bias, if there is one, and the summand, if there is one.
ffi::Error Forward(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer kernel,
                   ffi::RemainingArgs rest, ffi::Result<ffi::AnyBuffer> y, Span strides,
                   Span padding, Span dilation, bool has_bias, bool relu) {
  Key key{kForward, 0, has_bias, rest.size() > has_bias, relu};
  void* bias = BiasOf(key, rest, *y);
  return Run(key, pool, x, kernel, *y, bias, strides, padding, dilation);
}

// A kernel in the layout that oneDNN chooses for a problem, given as the numbers of a Key.
ffi::Error Pack(ffi::AnyBuffer kernel, ffi::Result<ffi::AnyBuffer> packed, Span problem) {
  Key key = ToKey(problem.begin());
  Arrays arrays{nullptr, kernel.untyped_data(), nullptr, nullptr};
  return Run([&] { Execution(key, FindPackedCall(key), arrays, false).Pack(packed->untyped_data()); });
}

// As Forward, with a kernel from Pack.
ffi::Error ForwardPacked(ffi::AnyBuffer x, ffi::AnyBuffer packed, ffi::RemainingArgs rest,
                         ffi::Result<ffi::AnyBuffer> y, Span problem) {
  Key key = ToKey(problem.begin());
  Arrays arrays{x.untyped_data(), packed.untyped_data(), y->untyped_data(), BiasOf(key, rest, *y)};
  return Run([&] { Execution(key, FindPackedCall(key), arrays, false).Run(/*packed=*/true); });
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

auto PackBinding() {
  return ffi::Ffi::Bind().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>().Attr<Span>("problem");
}

auto ForwardPackedBinding() {
  return ffi::Ffi::Bind()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .RemainingArgs()
      .Ret<ffi::AnyBuffer>()
      .Attr<Span>("problem");
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

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(resnet_jax_forward, Forward, ForwardBinding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(resnet_jax_input_gradient, InputGradient, GradientBinding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(resnet_jax_kernel_gradient, KernelGradient, GradientBinding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(resnet_jax_pack, Pack, PackBinding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(resnet_jax_forward_packed, ForwardPacked, ForwardPackedBinding());

// Whether oneDNN has a kernel for a problem, given as the numbers of a Key: 1 or 0.
extern "C" int resnet_jax_supports(const int64_t* problem) {
  try {
    FindCall(ToKey(problem), 0);
    return 1;
  } catch (const std::exception&) {
    return 0;
  }
}

// Bytes of a kernel from Pack; 0 if oneDNN takes kernels as they are, or has no kernel for the problem.
extern "C" int64_t resnet_jax_packed_bytes(const int64_t* problem) {
  try {
    const Plan& plan = FindPackedCall(ToKey(problem)).parts[0].plan;
    return plan.reorders ? plan.blocked_kernel.get_size() : 0;
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
