// What the bindings to oneDNN share.

#ifndef RESNET_JAX_OPS_NATIVE_ONEDNN_H_
#define RESNET_JAX_OPS_NATIVE_ONEDNN_H_

#include <oneapi/dnnl/dnnl.hpp>

#include <cstring>
#include <map>
#include <mutex>

// The constructors of oneDNN 2 take a description, those of oneDNN 3 its parts.
#if DNNL_VERSION_MAJOR >= 3
#define DESCRIBE_FORWARD(engine, attributes, ...) {engine, __VA_ARGS__, attributes}
#define DESCRIBE_BACKWARD(engine, attributes, hint, ...) {engine, __VA_ARGS__, hint, attributes}
#else
#define DESCRIBE_FORWARD(engine, attributes, ...) {{__VA_ARGS__}, attributes, engine}
#define DESCRIBE_BACKWARD(engine, attributes, hint, ...) {{__VA_ARGS__}, attributes, engine, hint}
#endif

inline const dnnl::engine& Engine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

// Throws for oneDNN's plain loops: of several implementations it offers the fastest first.
template <class Descriptor>
void RefuseReference(const Descriptor& descriptor) {
  if (std::strncmp(descriptor.impl_info_str(), "ref", 3) == 0)
    throw dnnl::error(dnnl_unimplemented, "there is only a reference implementation");
}

inline void FillWithNaN(void* data, size_t bytes) {
  if (bytes) std::memset(data, 0xFF, bytes);
}

// The plan of a problem, made once in a process. Throws where oneDNN has no kernel for it.
template <class Plan, class Key>
const Plan& FindPlan(const Key& key) {
  static std::mutex mutex;
  static std::map<Key, Plan> plans;
  std::lock_guard<std::mutex> lock(mutex);
  auto found = plans.find(key);
  if (found == plans.end()) found = plans.emplace(key, Plan(key)).first;
  return found->second;
}

#endif  // RESNET_JAX_OPS_NATIVE_ONEDNN_H_
