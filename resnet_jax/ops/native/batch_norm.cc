// Batch normalisation by the statistics of the batch, by oneDNN, for XLA on CPU: images NHWC,
// float32 or bfloat16; statistics and parameters float32.

#include <array>
#include <cstdint>
#include <exception>
#include <string>

#include "onednn.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using dnnl::memory;
using Tag = memory::format_tag;

namespace {

using Forward = dnnl::batch_normalization_forward;
using Backward = dnnl::batch_normalization_backward;

// All that is static of a call: whether backward, whether bfloat16, the shape of the images (NHWC),
// and epsilon in units of 1e-15.
using Key = std::array<int64_t, 7>;

constexpr double kEpsilonUnit = 1e-15;

// A primitive, ready to be run by any thread, which gets its scratchpad at each call.
struct Plan {
  memory::desc images, channels, scratchpad;
  dnnl::primitive primitive;

  explicit Plan(const Key& key)
      : images({key[2], key[5], key[3], key[4]},
               key[1] ? memory::data_type::bf16 : memory::data_type::f32, Tag::nhwc),
        channels({key[5]}, memory::data_type::f32, Tag::a) {
    auto epsilon = static_cast<float>(key[6] * kEpsilonUnit);
    auto flags = dnnl::normalization_flags::use_scale | dnnl::normalization_flags::use_shift;
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
#if DNNL_VERSION_MAJOR >= 3
    auto two = images, three = images;
    Forward::primitive_desc forward(Engine(), dnnl::prop_kind::forward_training, images, two,
                                    epsilon, flags, attributes);
    if (key[0]) {
      Set(Backward::primitive_desc(Engine(), dnnl::prop_kind::backward, images, two, three,
                                   epsilon, flags, forward, attributes));
      return;
    }
#else
    Forward::primitive_desc forward({dnnl::prop_kind::forward_training, images, epsilon, flags},
                                    attributes, Engine());
    if (key[0]) {
      Set(Backward::primitive_desc({dnnl::prop_kind::backward, images, images, epsilon, flags},
                                   attributes, Engine(), forward));
      return;
    }
#endif
    Set(forward);
  }

  template <class Descriptor>
  void Set(const Descriptor& descriptor) {
    RefuseReference(descriptor);
    primitive = dnnl::primitive(descriptor.get());
    scratchpad = descriptor.scratchpad_desc();
  }
};

// The arrays of a call. The forward pass computes y, mean and var from x, scale and bias. The
// backward pass computes dx, dscale and dbias from x, dy, mean, var and scale; y and dy, bias and
// dbias, in this order, share a place with them.
struct Arrays {
  void *x, *y, *scale, *bias, *mean, *var, *dx, *dscale;
};

// With `poison`, memory that must be written before it is read is filled with NaN first.
void Execute(const Key& key, const Arrays& of, bool poison) {
  const Plan& plan = FindPlan<Plan>(key);
  bool backward = key[0];
  dnnl::stream stream(Engine());
  auto images = [&](void* data) { return memory(plan.images, Engine(), data); };
  auto channels = [&](void* data) { return memory(plan.channels, Engine(), data); };
  memory scratchpad(plan.scratchpad, Engine());
  if (poison) {
    FillWithNaN(scratchpad.get_data_handle(), plan.scratchpad.get_size());
    FillWithNaN(backward ? of.dx : of.y, plan.images.get_size());
    for (void* data : {backward ? of.dscale : of.mean, backward ? of.bias : of.var})
      FillWithNaN(data, plan.channels.get_size());
  }
  if (backward) {
    plan.primitive.execute(stream, {{DNNL_ARG_SRC, images(of.x)},
                                    {DNNL_ARG_DIFF_DST, images(of.y)},
                                    {DNNL_ARG_MEAN, channels(of.mean)},
                                    {DNNL_ARG_VARIANCE, channels(of.var)},
                                    {DNNL_ARG_SCALE, channels(of.scale)},
                                    {DNNL_ARG_DIFF_SRC, images(of.dx)},
                                    {DNNL_ARG_DIFF_SCALE, channels(of.dscale)},
                                    {DNNL_ARG_DIFF_SHIFT, channels(of.bias)},
                                    {DNNL_ARG_SCRATCHPAD, scratchpad}});
  } else {
    plan.primitive.execute(stream, {{DNNL_ARG_SRC, images(of.x)},
                                    {DNNL_ARG_SCALE, channels(of.scale)},
                                    {DNNL_ARG_SHIFT, channels(of.bias)},
                                    {DNNL_ARG_DST, images(of.y)},
                                    {DNNL_ARG_MEAN, channels(of.mean)},
                                    {DNNL_ARG_VARIANCE, channels(of.var)},
                                    {DNNL_ARG_SCRATCHPAD, scratchpad}});
  }
  stream.wait();
}

ffi::Error Run(bool backward, int64_t epsilon, const ffi::AnyBuffer& x, const Arrays& arrays) {
  auto shape = x.dimensions();
  Key key{backward, x.element_type() == ffi::DataType::BF16, shape[0], shape[1], shape[2],
          shape[3], epsilon};
  try {
    Execute(key, arrays, false);
    return ffi::Error::Success();
  } catch (const std::exception& error) {
    return ffi::Error::Internal(std::string("oneDNN: ") + error.what());
  }
}

using Buffer = ffi::AnyBuffer;
using Result = ffi::Result<ffi::AnyBuffer>;

ffi::Error Normalize(Buffer x, Buffer scale, Buffer bias, Result y, Result mean, Result var,
                     int64_t epsilon) {
  return Run(false, epsilon, x,
             {x.untyped_data(), y->untyped_data(), scale.untyped_data(), bias.untyped_data(),
              mean->untyped_data(), var->untyped_data(), nullptr, nullptr});
}

ffi::Error Differentiate(Buffer x, Buffer dy, Buffer mean, Buffer var, Buffer scale, Result dx,
                         Result dscale, Result dbias, int64_t epsilon) {
  return Run(true, epsilon, x,
             {x.untyped_data(), dy.untyped_data(), scale.untyped_data(), dbias->untyped_data(),
              mean.untyped_data(), var.untyped_data(), dx->untyped_data(),
              dscale->untyped_data()});
}

Key ToKey(const int64_t* numbers) {
  Key key;
  std::copy(numbers, numbers + key.size(), key.begin());
  return key;
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(resnet_jax_batch_norm, Normalize,
                              ffi::Ffi::Bind()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Ret<Buffer>()
                                  .Ret<Buffer>()
                                  .Ret<Buffer>()
                                  .Attr<int64_t>("epsilon"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(resnet_jax_batch_norm_gradient, Differentiate,
                              ffi::Ffi::Bind()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Ret<Buffer>()
                                  .Ret<Buffer>()
                                  .Ret<Buffer>()
                                  .Attr<int64_t>("epsilon"));

// Whether oneDNN has a kernel for a problem, given as the numbers of a Key: 1 or 0.
extern "C" int resnet_jax_supports_batch_norm(const int64_t* problem) {
  try {
    FindPlan<Plan>(ToKey(problem));
    return 1;
  } catch (const std::exception&) {
    return 0;
  }
}

// For checks, without XLA: as Execute with `poison`; returns 1, or 0 where oneDNN fails.
extern "C" int resnet_jax_try_batch_norm(const int64_t* problem, void* const* arrays) {
  try {
    Execute(ToKey(problem),
            {arrays[0], arrays[1], arrays[2], arrays[3], arrays[4], arrays[5], arrays[6],
             arrays[7]},
            true);
    return 1;
  } catch (const std::exception&) {
    return 0;
  }
}
