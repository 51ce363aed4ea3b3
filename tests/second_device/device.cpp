// An accelerator without hardware, to see what only happens on one. Its memory is the CPU's, and the CPU computes.
//
// It refuses what accelerators refuse: operations that mix its tensors with the CPU's, and random numbers from a
// generator of the CPU. Like Apple's MPS, it has no float64, and `torch.accelerator` cannot ask it for its memory.
// PyTorch knows it as the backend PrivateUse1.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <mutex>
#include <set>

namespace {

using at::IntArrayRef;
using at::Tensor;
using c10::SymIntArrayRef;
using std::optional;

constexpr auto KIND = c10::DeviceType::PrivateUse1;
const c10::Device DEVICE(KIND, 0);

bool is_here(const Tensor& tensor) { return tensor.defined() && tensor.device().type() == KIND; }

// ---- Memory: the CPU's, under this device's name.

c10::DataPtr allocate_as(size_t bytes, c10::Device device, c10::DeleterFnPtr release) {
  auto* held = new c10::DataPtr(c10::GetCPUAllocator()->allocate(bytes));
  return {held->get(), held, release, device};
}

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override { return allocate_as(bytes, DEVICE, &release); }
  static void release(void* held) { delete static_cast<c10::DataPtr*>(held); }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};
Memory memory;
REGISTER_ALLOCATOR(KIND, &memory);

// Pinned memory is ordinary memory whose addresses are remembered.
struct PinnedMemory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    auto data = allocate_as(bytes, at::kCPU, &release);
    std::lock_guard<std::mutex> hold(lock);
    places.insert(data.get());
    return data;
  }
  static void release(void* context) {
    auto* held = static_cast<c10::DataPtr*>(context);
    std::lock_guard<std::mutex> hold(lock);
    places.erase(held->get());
    delete held;
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
  static bool has(const void* place) {
    std::lock_guard<std::mutex> hold(lock);
    return places.count(place) > 0;
  }
  static inline std::mutex lock;
  static inline std::set<const void*> places;
};
PinnedMemory pinned_memory;

// ---- Random numbers: those of a generator of the CPU with the same seed.

struct DeviceGenerator final : c10::GeneratorImpl {
  explicit DeviceGenerator(at::Generator cpu)
      : c10::GeneratorImpl(DEVICE, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)), cpu(std::move(cpu)) {}
  void set_current_seed(uint64_t seed) override { cpu.set_current_seed(seed); }
  uint64_t current_seed() const override { return cpu.current_seed(); }
  uint64_t seed() override { return cpu.seed(); }
  void set_offset(uint64_t offset) override { cpu.set_offset(offset); }
  uint64_t get_offset() const override { return cpu.get_offset(); }
  void set_state(const c10::TensorImpl& state) override { cpu.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return cpu.unsafeGetGeneratorImpl()->get_state(); }
  DeviceGenerator* clone_impl() const override { return new DeviceGenerator(cpu.clone()); }
  at::Generator cpu;
};

at::Generator new_generator() { return at::make_generator<DeviceGenerator>(at::detail::createCPUGenerator()); }

const at::Generator& default_generator() {
  static at::Generator generator = new_generator();
  return generator;
}

// ---- What PyTorch asks about the device. There is one, with one stream, and all work is done at once.

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
  c10::DeviceType type() const override { return KIND; }
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  c10::Device getDevice() const override { return DEVICE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  c10::Stream getStream(c10::Device) const override { return stream(); }
  c10::Stream getNewStream(c10::Device, int = 0) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const override { return stream(); }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override {}
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::Device getDeviceFromPtr(void*) const override { return DEVICE; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override { return default_generator(); }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return new_generator(); }
  bool isPinnedPtr(const void* place) const override { return PinnedMemory::has(place); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_memory; }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    auto data = memory.allocate(bytes);
    if (storage.data()) std::memcpy(data.get(), storage.data(), std::min(bytes, storage.nbytes()));
    storage.unsafeGetStorageImpl()->set_data_ptr(std::move(data));
    storage.unsafeGetStorageImpl()->set_nbytes(bytes);
  }
};

// ---- New tensors, and views of tensors.

void check_type(c10::ScalarType type) {
  TORCH_CHECK_TYPE(type != at::kDouble && type != at::kComplexDouble, "the second device has no float64");
}

Tensor empty(IntArrayRef size, optional<c10::ScalarType> type, optional<c10::Layout>, optional<c10::Device>,
             optional<bool>, optional<c10::MemoryFormat> format) {
  check_type(c10::dtype_or_default(type));
  c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_generic(size, &memory, keys, c10::dtype_or_default(type), format);
}

Tensor empty_strided(IntArrayRef size, IntArrayRef stride, optional<c10::ScalarType> type, optional<c10::Layout>,
                     optional<c10::Device>, optional<bool>) {
  check_type(c10::dtype_or_default(type));
  c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_strided_generic(size, stride, &memory, keys, c10::dtype_or_default(type));
}

IntArrayRef plain(SymIntArrayRef numbers) { return C10_AS_INTARRAYREF_SLOW(numbers); }

Tensor as_strided(const Tensor& self, SymIntArrayRef size, SymIntArrayRef stride, optional<c10::SymInt> offset) {
  auto start = offset ? optional<int64_t>(offset->expect_int()) : std::nullopt;
  return at::native::as_strided_tensorimpl(self, plain(size), plain(stride), start);
}

Tensor view(const Tensor& self, SymIntArrayRef size) { return at::native::view(self, plain(size)); }

Tensor reshape_alias(const Tensor& self, SymIntArrayRef size, SymIntArrayRef stride) {
  return at::native::_reshape_alias(self, plain(size), plain(stride));
}

Tensor& set_storage_part(Tensor& self, at::Storage storage, c10::SymInt offset, SymIntArrayRef size,
                         SymIntArrayRef stride) {
  auto* tensor = self.unsafeGetTensorImpl();
  tensor->set_storage_keep_dtype(std::move(storage));
  tensor->set_storage_offset(offset.expect_int());
  if (size.size() == stride.size()) {
    tensor->set_sizes_and_strides(plain(size), plain(stride));
  } else {
    tensor->set_sizes_contiguous(plain(size));
  }
  return self;
}

Tensor& set_storage(Tensor& self, at::Storage storage) {
  c10::SymInt size(static_cast<int64_t>(storage.nbytes() / self.itemsize()));
  return set_storage_part(self, std::move(storage), 0, SymIntArrayRef(size), {});
}

Tensor& set_tensor(Tensor& self, const Tensor& other) {
  return self.set_(other.storage(), other.storage_offset(), other.sizes(), other.strides());
}

const Tensor& resize(const Tensor& self, SymIntArrayRef size, optional<c10::MemoryFormat> format) {
  if (self.sizes() == plain(size)) return self;
  auto* tensor = self.unsafeGetTensorImpl();
  tensor->set_sizes_contiguous(plain(size));
  if (format) tensor->empty_tensor_restride(*format);
  size_t bytes = (tensor->storage_offset() + tensor->numel()) * tensor->itemsize();
  if (bytes > self.storage().nbytes()) at::detail::getPrivateUse1Hooks().resizePrivateUse1Bytes(self.storage(), bytes);
  return self;
}

// ---- Copies. `on_cpu` is a tensor of the CPU in the same memory.

Tensor on_cpu(const Tensor& tensor) {
  if (!is_here(tensor)) return tensor;
  auto keep = [tensor](void*) {};
  auto* data = tensor.storage().mutable_data();
  auto bytes = at::from_blob(data, {static_cast<int64_t>(tensor.storage().nbytes())}, keep, at::kByte);
  auto other = at::empty({0}, tensor.dtype());
  other.set_(bytes.storage(), tensor.storage_offset(), tensor.sizes(), tensor.strides());
  if (tensor.is_conj()) other = at::_conj(other);
  return tensor.is_neg() ? at::_neg_view(other) : other;
}

Tensor to_here(const Tensor& tensor) {
  if (!tensor.defined()) return tensor;
  auto other = at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(DEVICE));
  on_cpu(other).copy_(tensor);
  return other;
}

Tensor copy_from(const Tensor& self, const Tensor& target, bool) {
  at::NoGradGuard no_grad;
  on_cpu(target).copy_(on_cpu(self));
  return target;
}

Tensor copy_from_and_resize(const Tensor& self, const Tensor& target) {
  target.resize_(self.sizes());
  return copy_from(self, target, false);
}

at::Scalar read_number(const Tensor& self) { return at::_local_scalar_dense(on_cpu(self)); }

// ---- Everything else is done on the CPU, if an accelerator would do it.

// The first tensor may be indexed with tensors of the CPU.
const std::set<std::string> INDEXING{"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_",
                                     "aten::_unsafe_index", "aten::_unsafe_index_put"};

void visit_tensors(const c10::IValue& value, const std::function<void(const Tensor&)>& visit) {
  if (value.isTensor()) {
    visit(value.toTensor());
  } else if (value.isTensorList()) {
    for (const Tensor& tensor : value.toTensorVector()) visit(tensor);
  } else if (value.isOptionalTensorList()) {
    for (const optional<Tensor>& tensor : value.toOptionalTensorVector()) visit(tensor.value_or(Tensor()));
  }
}

void compute_on_cpu(const c10::OperatorHandle& operation, torch::jit::Stack* stack) {
  const auto& name = operation.schema().name();
  bool first = true, first_is_here = false, some_on_cpu = false;
  for (auto& value : torch::jit::last(*stack, operation.schema().arguments().size())) {
    visit_tensors(value, [&](const Tensor& tensor) {
      if (!tensor.defined()) return;
      if (first) first_is_here = is_here(tensor);
      first = false;
      some_on_cpu |= !is_here(tensor) && tensor.dim() > 0;  // a number on the CPU is a kernel's argument
    });
  }
  TORCH_CHECK(!some_on_cpu || (first_is_here && INDEXING.count(name)), name,
              " takes tensors of the CPU and of the second device");
  for (size_t i = stack->size() - operation.schema().arguments().size(); i < stack->size(); ++i) {
    auto& value = (*stack)[i];
    if (!value.isGenerator()) continue;
    auto generator = value.toGenerator();
    TORCH_CHECK(generator.device().type() == KIND, name, " draws on the second device from a generator of the CPU");
    value = static_cast<DeviceGenerator*>(generator.unsafeGetGeneratorImpl())->cpu;
  }
  at::native::cpu_fallback(operation, stack, /*error_on_views=*/true);
}

// PyTorch has convolutions that a backend must override.

void check_same(const Tensor& input, const Tensor& other) {
  TORCH_CHECK(!other.defined() || is_here(input) == is_here(other),
              "a convolution takes tensors of the CPU and of the second device");
}

Tensor convolution(const Tensor& input, const Tensor& weight, const optional<Tensor>& bias, SymIntArrayRef stride,
                   SymIntArrayRef padding, SymIntArrayRef dilation, bool transposed, SymIntArrayRef output_padding,
                   c10::SymInt groups) {
  optional<Tensor> shift;
  if (bias && bias->defined()) {
    check_same(input, *bias);
    shift = on_cpu(*bias);
  }
  check_same(input, weight);
  return to_here(at::convolution(on_cpu(input), on_cpu(weight), shift, plain(stride), plain(padding), plain(dilation),
                                 transposed, plain(output_padding), groups.expect_int()));
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& gradient, const Tensor& input, const Tensor& weight, SymIntArrayRef stride, SymIntArrayRef padding,
    SymIntArrayRef dilation, bool transposed, SymIntArrayRef output_padding, c10::SymInt groups,
    std::array<bool, 3> wanted) {
  check_same(input, weight);
  check_same(input, gradient);
  std::vector<int64_t> bias{transposed ? weight.size(1) * groups.expect_int() : weight.size(0)};
  auto [of_input, of_weight, of_bias] = at::convolution_backward(
      on_cpu(gradient), on_cpu(input), on_cpu(weight), IntArrayRef(bias), plain(stride), plain(padding),
      plain(dilation), transposed, plain(output_padding), groups.expect_int(), wanted);
  return {to_here(of_input), to_here(of_weight), to_here(of_bias)};
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&compute_on_cpu>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("as_strided", as_strided);
  m.impl("view", view);
  m.impl("_reshape_alias", reshape_alias);
  m.impl("unfold", at::native::unfold);
  m.impl("view_as_real", at::native::view_as_real);
  m.impl("view_as_complex", at::native::view_as_complex);
  m.impl("set_.source_Storage", set_storage);
  m.impl("set_.source_Storage_storage_offset", set_storage_part);
  m.impl("set_.source_Tensor", set_tensor);
  m.impl("resize_", resize);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", read_number);
  m.impl("convolution_overrideable", convolution);
  m.impl("convolution_backward_overrideable", convolution_backward);
  // Without these PyTorch composes the norms of views, which some memory formats do not have.
  m.impl("native_group_norm", torch::CppFunction::makeFromBoxedFunction<&compute_on_cpu>());
  m.impl("native_layer_norm", torch::CppFunction::makeFromBoxedFunction<&compute_on_cpu>());
}

}  // namespace

// ---- Autocast rounds the inputs of the same operations as on other accelerators.

namespace at::autocast {

#define LOWER(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define FULL(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
#define FULL_OPTION(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32_set_opt_dtype)
#define WIDEST(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, promote)

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  AT_FORALL_LOWER_PRECISION_FP(LOWER)
  AT_FORALL_FP32(FULL)
  AT_FORALL_FP32_SET_OPT_DTYPE(FULL_OPTION)
  AT_FORALL_PROMOTE(WIDEST)
}
TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }

}  // namespace at::autocast

TORCH_LIBRARY(second_device, m) {
  static Hooks hooks;
  at::RegisterPrivateUse1HooksInterface(&hooks);
  m.def("default_generator", default_generator);
}
