// The simulated machine as a device of torch: PrivateUse1, its memory, streams, generator and
// operators.
//
// An operator runs as the CPU's kernel on host tensors that stand on the device tensors' memory. So
// every operator that the CPU has is there, views are views, and what is in place is in place.
#include "runtime.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/Operators.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/enum_tag.h>
#include <ATen/core/stack.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/Resize.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/Generator.h>
#include <torch/library.h>

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <unordered_map>

namespace sim {
namespace {

using at::IntArrayRef;
using at::Scalar;
using at::ScalarType;
using at::Tensor;
using c10::Device;
using c10::kCPU;
using c10::kPrivateUse1;
using c10::Storage;
using torch::jit::Stack;

Runtime& runtime() { return Runtime::get(); }

// ---- memory

void delete_block(void* block) { runtime().free(static_cast<Block*>(block)); }

c10::DataPtr own(Block* block, Device device) {
  return {block->data, block, &delete_block, device};
}

Block* block_of(const Storage& storage) {
  TORCH_CHECK(storage.data_ptr().get_deleter() == &delete_block,
              "sim: this memory isn't the device's");
  return static_cast<Block*>(storage.data_ptr().get_context());
}

struct DeviceAllocator final : c10::DeviceAllocator {
  c10::DataPtr allocate(size_t size) override {
    int device = runtime().current_device();
    return own(runtime().allocate(size, device),
               Device(kPrivateUse1, static_cast<c10::DeviceIndex>(device)));
  }
  void copy_data(void* to, const void* from, size_t count) const override {
    default_copy_data(to, from, count);
  }
  bool initialized() override { return runtime().initialized; }
  void emptyCache(c10::MempoolId_t) override {}
  void recordStream(const c10::DataPtr& data, c10::Stream stream) override;
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex device) override {
    c10::CachingDeviceAllocator::DeviceStats stats;
    for (auto* of : {&stats.allocated_bytes, &stats.reserved_bytes, &stats.active_bytes,
                     &stats.requested_bytes}) {
      (*of)[0].current = runtime().allocated(device);
      (*of)[0].peak = runtime().peak(device);
    }
    return stats;
  }
  void resetAccumulatedStats(c10::DeviceIndex) override {}
  void resetPeakStats(c10::DeviceIndex device) override { runtime().reset_peak(device); }
};

struct PinnedAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    return own(runtime().allocate(size, -1), Device(kCPU));
  }
  void copy_data(void* to, const void* from, size_t count) const override {
    default_copy_data(to, from, count);
  }
};

void check_dtype(c10::ScalarType dtype) {
  TORCH_CHECK_TYPE(
      runtime().options.float64 || (dtype != at::kDouble && dtype != at::kComplexDouble),
      "Cannot convert a sim Tensor to float64 dtype as the sim framework doesn't support float64. "
      "Please use float32 "
      "instead.");
  TORCH_CHECK_TYPE(runtime().options.bfloat16 || dtype != at::kBFloat16,
                   "BFloat16 is not supported on sim");
}

// ---- streams, events, devices. A stream's id in torch is its place in the runtime, and 0 for a
// device's default stream.

int stream_index(const c10::Stream& stream) {
  return stream.id() == 0 ? stream.device_index() : static_cast<int>(stream.id());
}

c10::Stream to_torch(int stream, int device) {
  return c10::Stream(c10::Stream::UNSAFE,
                     Device(kPrivateUse1, static_cast<c10::DeviceIndex>(device)),
                     stream == device ? 0 : stream);
}

void DeviceAllocator::recordStream(const c10::DataPtr& data, c10::Stream stream) {
  if (data.get_deleter() == &delete_block)
    runtime().record_stream(static_cast<Block*>(data.get_context()), stream_index(stream));
}

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kPrivateUse1; }
  Device getDevice() const override {
    return Device(kPrivateUse1, static_cast<c10::DeviceIndex>(runtime().current_device()));
  }
  void setDevice(Device device) const override {
    runtime().check_device(device.index());
    runtime().current_device() = device.index();
  }
  void uncheckedSetDevice(Device device) const noexcept override {
    runtime().current_device() = device.index();
  }
  Device exchangeDevice(Device device) const override {
    Device before = getDevice();
    if (device.has_index()) setDevice(device);
    return before;
  }
  c10::DeviceIndex deviceCount() const noexcept override {
    return static_cast<c10::DeviceIndex>(runtime().options.devices);
  }
  c10::DeviceCapability getDeviceCapability(Device) const override {
    c10::DeviceCapability capability;
    capability.capability_data.supported_scalar_types.has_Double = runtime().options.float64;
    capability.capability_data.supported_scalar_types.has_ComplexDouble = runtime().options.float64;
    capability.capability_data.supported_scalar_types.has_BFloat16 = runtime().options.bfloat16;
    return capability;
  }

  int index(Device device) const {
    int chosen = device.has_index() ? device.index() : runtime().current_device();
    runtime().check_device(chosen);
    return chosen;
  }
  c10::Stream getStream(Device device) const override {
    return to_torch(runtime().current_stream(index(device)), index(device));
  }
  c10::Stream getDefaultStream(Device device) const override {
    return to_torch(index(device), index(device));
  }
  c10::Stream getNewStream(Device device, int) const override {
    return to_torch(runtime().new_stream(index(device)), index(device));
  }
  c10::Stream getStreamFromGlobalPool(Device device, bool) const override {
    return getNewStream(device, 0);
  }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    int& current = runtime().current_stream(stream.device_index());
    return to_torch(std::exchange(current, stream_index(stream)), stream.device_index());
  }
  bool queryStream(const c10::Stream& stream) const override {
    return runtime().query_stream(stream_index(stream));
  }
  void synchronizeStream(const c10::Stream& stream) const override {
    runtime().synchronize_stream(stream_index(stream));
  }
  void synchronizeDevice(c10::DeviceIndex device) const override {
    runtime().synchronize_device(device);
  }

  void record(void** event, const c10::Stream& stream, c10::DeviceIndex,
              c10::EventFlag) const override {
    TORCH_CHECK(runtime().options.streams, "sim: this device has no events (no-streams)");
    if (!*event) *event = new Event;
    auto* recorded = static_cast<Event*>(*event);
    runtime().record(*recorded, stream_index(stream));
    recorded->nanoseconds = std::chrono::steady_clock::now().time_since_epoch().count();
  }
  void block(void* event, const c10::Stream& stream) const override {
    if (event) runtime().wait(stream_index(stream), *static_cast<Event*>(event));
  }
  bool queryEvent(void* event) const override {
    return !event || runtime().query(*static_cast<Event*>(event));
  }
  void synchronizeEvent(void* event) const override {
    if (event) runtime().synchronize_event(*static_cast<Event*>(event));
  }
  void destroyEvent(void* event, c10::DeviceIndex) const noexcept override {
    delete static_cast<Event*>(event);
  }
  double elapsedTime(void* from, void* to, c10::DeviceIndex) const override {
    return static_cast<double>(static_cast<Event*>(to)->nanoseconds -
                               static_cast<Event*>(from)->nanoseconds) /
           1e6;
  }
  void recordDataPtrOnStream(const c10::DataPtr& data, const c10::Stream& stream) const override {
    static_cast<DeviceAllocator*>(c10::GetAllocator(kPrivateUse1))->recordStream(data, stream);
  }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

// ---- random numbers: a generator of its own for each device. Its numbers aren't the CPU's for the
// same seed, as a GPU's aren't.

constexpr uint64_t seed_mask = 0x5DEECE66D;

struct DeviceGenerator final : c10::GeneratorImpl {
  at::Generator host;

  explicit DeviceGenerator(c10::DeviceIndex device)
      : GeneratorImpl(Device(kPrivateUse1, device),
                      c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)),
        host(at::detail::createCPUGenerator(c10::default_rng_seed_val ^ seed_mask)) {}

  void set_current_seed(uint64_t seed) override { host.set_current_seed(seed ^ seed_mask); }
  uint64_t current_seed() const override { return host.current_seed() ^ seed_mask; }
  uint64_t seed() override {
    uint64_t chosen = c10::detail::getNonDeterministicRandom();
    set_current_seed(chosen);
    return chosen;
  }
  void set_offset(uint64_t) override { TORCH_CHECK(false, "sim: the generator has no offset"); }
  uint64_t get_offset() const override { TORCH_CHECK(false, "sim: the generator has no offset"); }
  void set_state(const c10::TensorImpl& state) override {
    host.unsafeGetGeneratorImpl()->set_state(state);
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return host.unsafeGetGeneratorImpl()->get_state();
  }
  DeviceGenerator* clone_impl() const override {
    auto* copy = new DeviceGenerator(device().index());
    copy->host = host.clone();
    return copy;
  }
};

const at::Generator& default_generator(c10::DeviceIndex device) {
  static std::vector<at::Generator> generators = [] {
    std::vector<at::Generator> all;
    for (int index = 0; index < runtime().options.devices; ++index)
      all.push_back(at::make_generator<DeviceGenerator>(static_cast<c10::DeviceIndex>(index)));
    return all;
  }();
  int index = device < 0 ? runtime().current_device() : device;
  runtime().check_device(index);
  return generators[index];
}

// ---- hooks: what torch.accelerator and pinned memory ask

struct Hooks final : at::PrivateUse1HooksInterface {
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return runtime().options.devices > 0; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return runtime().initialized; }
  c10::DeviceIndex deviceCount() const override {
    return static_cast<c10::DeviceIndex>(runtime().options.devices);
  }
  void setCurrentDevice(c10::DeviceIndex device) const override {
    Guard().setDevice(Device(kPrivateUse1, device));
  }
  c10::DeviceIndex getCurrentDevice() const override {
    return static_cast<c10::DeviceIndex>(runtime().current_device());
  }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex device) const override {
    return Guard().exchangeDevice(Device(kPrivateUse1, device)).index();
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex device) const override {
    return device < 0 ? getCurrentDevice() : exchangeDevice(device);
  }
  c10::Allocator* getPinnedMemoryAllocator() const override {
    TORCH_CHECK(runtime().options.pinning, "sim: this device has no pinned memory (no-pinning)");
    static PinnedAllocator allocator;
    return &allocator;
  }
  bool isPinnedPtr(const void* data) const override {
    return runtime().find_pinned(data) != nullptr;
  }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex device) const override {
    return default_generator(device);
  }
  at::Generator getNewGenerator(c10::DeviceIndex device) const override {
    return at::make_generator<DeviceGenerator>(default_generator(device).device().index());
  }
  void resizePrivateUse1Bytes(const Storage& storage, size_t size) const override {
    c10::DeviceGuard guard(storage.device());
    at::native::resize_bytes_cpu(storage.unsafeGetStorageImpl(), size);
  }
};

// ---- operators

// Host tensors on the memory of device tensors, for one call, and the way back.
class Aliases {
 public:
  Tensor host(const Tensor& tensor) {
    if (!tensor.defined() || tensor.is_cpu()) return tensor;
    TORCH_CHECK(tensor.layout() == at::kStrided, "sim: only strided tensors, got ",
                tensor.layout());
    Tensor alias = dress(
        at::detail::make_tensor<c10::TensorImpl>(
            host(tensor.storage()), c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype()),
        tensor);
    tensors_.emplace_back(tensor, alias);
    return alias;
  }

  Storage host(const Storage& storage) {
    if (storage.device_type() == kCPU) return storage;
    auto found = hosts_.find(storage.unsafeGetStorageImpl());
    if (found != hosts_.end()) return found->second;
    c10::DataPtr data(
        const_cast<void*>(storage.data()), new Storage(storage),
        [](void* kept) { delete static_cast<Storage*>(kept); }, Device(kCPU));
    auto alias = c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(),
                                                       storage.nbytes(), std::move(data),
                                                       c10::GetAllocator(kCPU), /*resizable=*/true);
    pairs_.emplace_back(storage, Storage(alias));
    devices_.emplace(alias.get(), storage);
    hosts_.emplace(storage.unsafeGetStorageImpl(), Storage(alias));
    return Storage(alias);
  }

  // The device tensor for what a CPU kernel returned: an argument, a view of one, or a new tensor.
  Tensor device(const Tensor& result, int device, int stream) {
    if (!result.defined()) return result;
    for (const auto& [tensor, alias] : tensors_)
      if (alias.is_same(result)) return tensor;
    for (const auto& [tensor, alias] : tensors_)
      if (alias.is_alias_of(result))
        return dress(
            at::detail::make_tensor<c10::TensorImpl>(
                c10::TensorImpl::VIEW, Storage(tensor.storage()), tensor.key_set(), result.dtype()),
            result);
    return dress(at::detail::make_tensor<c10::TensorImpl>(
                     adopt(result.storage(), device, stream),
                     c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), result.dtype()),
                 result);
  }

  // What the kernel did to an argument's size, or to the place it stands on.
  void write_back(int device, int stream) {
    for (auto& [storage, alias] : pairs_) {
      if (alias.data() == storage.data() && alias.nbytes() == storage.nbytes()) continue;
      c10::StorageImpl* original = storage.unsafeGetStorageImpl();
      original->set_nbytes(alias.nbytes());
      original->set_data_ptr(steal(alias, device, stream));
    }
    for (auto& [tensor, alias] : tensors_) {
      c10::TensorImpl* original = tensor.unsafeGetTensorImpl();
      Storage expected = adopt(alias.storage(), device, stream);
      if (!expected.is_alias_of(tensor.storage())) original->set_storage_keep_dtype(expected);
      if (alias.sizes() != tensor.sizes() || alias.strides() != tensor.strides() ||
          alias.storage_offset() != tensor.storage_offset())
        original->set_sizes_and_strides(alias.sizes(), alias.strides(), alias.storage_offset());
    }
  }

 private:
  static Tensor dress(Tensor made, const Tensor& like) {
    made.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(),
                                                      like.storage_offset());
    if (like.is_conj()) made._set_conj(true);
    if (like.is_neg()) made._set_neg(true);
    return made;
  }

  Storage adopt(const Storage& result, int device, int stream) {
    auto known = devices_.find(result.unsafeGetStorageImpl());
    if (known != devices_.end()) return known->second;
    c10::DataPtr data = steal(result, device, stream);
    auto made = c10::make_intrusive<c10::StorageImpl>(
        c10::StorageImpl::use_byte_size_t(), result.nbytes(), std::move(data),
        c10::GetAllocator(kPrivateUse1), /*resizable=*/true);
    kept_.push_back(result);  // or another result's storage could get its address
    devices_.emplace(result.unsafeGetStorageImpl(), Storage(made));
    return Storage(made);
  }

  // The memory itself changes sides, without a copy. It is the runtime's to poison and to free from
  // now on.
  static c10::DataPtr steal(const Storage& result, int device, int stream) {
    c10::DataPtr data = result.unsafeGetStorageImpl()->set_data_ptr(
        c10::DataPtr(nullptr, Device(kCPU)));
    Block* block = runtime().allocate(result.nbytes(), device, std::move(data));
    runtime().wrote(block, stream);
    return own(block, Device(kPrivateUse1, static_cast<c10::DeviceIndex>(device)));
  }

  std::vector<std::pair<Tensor, Tensor>> tensors_;
  std::vector<std::pair<Storage, Storage>> pairs_;
  std::unordered_map<c10::StorageImpl*, Storage> hosts_, devices_;
  std::vector<Storage> kept_;
};

// A value with every tensor in it replaced.
template <typename Replace>
c10::IValue map_tensors(const c10::IValue& value, Replace replace) {
  if (value.isTensor()) return replace(value.toTensor());
  if (value.isTensorList()) {
    c10::List<Tensor> list;
    for (const Tensor& tensor : value.toTensorVector()) list.push_back(replace(tensor));
    return list;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> list;
    for (const auto& tensor : value.toOptionalTensorVector())
      list.push_back(tensor ? std::optional<Tensor>(replace(*tensor)) : tensor);
    return list;
  }
  if (!value.isList() || value.toList().elementType()->kind() != c10::TypeKind::ListType)
    return value;
  c10::impl::GenericList list(value.toList().elementType());
  for (const c10::IValue& part : value.toListRef()) list.push_back(map_tensors(part, replace));
  return list;
}

bool is_generator(const c10::Type& type) {
  const auto* optional = type.castRaw<c10::OptionalType>();
  return (optional ? *optional->getElementType() : type).kind() == c10::TypeKind::GeneratorType;
}

// One call of an operator with arguments on the device.
class Call {
 public:
  Call(const c10::OperatorHandle& op, Stack* stack, const c10::OperatorHandle* host_op = nullptr)
      : op_(op),
        host_op_(host_op ? *host_op : op),
        stack_(stack),
        arguments_(op.schema().arguments()) {}
  ~Call() { restore_generator(); }  // also after an error

  void run() {
    find_device();
    c10::DeviceGuard guard(Device(kPrivateUse1, static_cast<c10::DeviceIndex>(device_)));
    replace_arguments();
    replace_generator();
    bool is_view = !op_.schema().returns().empty();
    for (const auto& result : op_.schema().returns())
      is_view = is_view && result.alias_info() && !result.alias_info()->isWrite();
    is_view = is_view || op_.hasTag(at::Tag::inplace_view);
    int stream = runtime().current_stream(device_);
    if (!is_view) stream = runtime().launch(device_, reads_, writes_, op_.schema().name());
    // Only the host can make room for a result whose size is in the data.
    if (op_.hasTag(at::Tag::dynamic_output_shape) || op_.hasTag(at::Tag::data_dependent_output) ||
        has_mask_)
      runtime().synchronize_stream(stream);
    {
      at::AutoDispatchBelowADInplaceOrView below;
      host_op_.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack_);
    }
    restore_generator();
    aliases_.write_back(device_, stream);
    for (auto& result : torch::jit::last(*stack_, op_.schema().returns().size()))
      const_cast<c10::IValue&>(result) = back(result, stream);
  }

 private:
  c10::IValue& argument(size_t number) {
    return (*stack_)[stack_->size() - arguments_.size() + number];
  }

  // Collectives don't say in their schemas what they write.
  bool is_written(size_t number) {
    const c10::AliasInfo* alias = arguments_[number].alias_info();
    return alias ? alias->isWrite() : is_collective_;
  }

  // All tensors are on one device. A number on the host may join them.
  void find_device() {
    std::optional<Device> common, named, stranger;
    for (size_t number = 0; number < arguments_.size(); ++number) {
      const c10::IValue& value = argument(number);
      if (value.isDevice()) named = value.toDevice();
      // CUDA's indexing takes indices from the host, and copies them.
      bool may_be_host = value.isOptionalTensorList() &&
                         op_.schema().name().find("index") != std::string::npos;
      bool may_be_number = !is_written(number);
      map_tensors(value, [&](const Tensor& tensor) {
        if (!tensor.defined()) return tensor;
        if (tensor.is_cpu() && (may_be_host || (may_be_number && tensor.dim() == 0))) return tensor;
        if (!tensor.is_privateuseone() || (common && *common != tensor.device()))
          stranger = tensor.device();
        else
          common = tensor.device();
        return tensor;
      });
    }
    if (!common && named && named->is_privateuseone())
      common = Device(kPrivateUse1, static_cast<c10::DeviceIndex>(Guard().index(*named)));
    TORCH_CHECK(!stranger,
                "Expected all tensors to be on the same device, but found at least two devices, ",
                common ? c10::str(*common) : std::string("sim"), " and ", *stranger,
                "! (when checking an argument of ", op_.schema().name(), ")");
    device_ = common ? common->index() : runtime().current_device();
  }

  void replace_arguments() {
    for (size_t number = 0; number < arguments_.size(); ++number) {
      c10::IValue& value = argument(number);
      bool writes = is_written(number);
      // For a result of its own, indexing has found the places that a mask means before it comes
      // here.
      bool has_indices = value.isOptionalTensorList() &&
                         op_.schema().name().find("index_put") != std::string::npos;
      value = map_tensors(value, [&](const Tensor& tensor) {
        if (!tensor.defined()) return tensor;
        has_mask_ = has_mask_ ||
                    (has_indices && (tensor.scalar_type() == at::kBool || tensor.is_cpu()));
        if (tensor.is_privateuseone())
          (writes ? writes_ : reads_).push_back(block_of(tensor.storage()));
        return aliases_.host(tensor);
      });
      if (value.isStorage()) value = aliases_.host(value.toStorage());
      if (value.isDevice()) value = Device(kCPU);
    }
  }

  // The numbers come from the device's generator.
  void replace_generator() {
    bool replaced = false;
    for (size_t number = 0; number < arguments_.size(); ++number) {
      if (!is_generator(*arguments_[number].type())) continue;
      c10::IValue& value = argument(number);
      at::Generator chosen = value.isNone()
                                 ? default_generator(static_cast<c10::DeviceIndex>(device_))
                                 : value.toGenerator();
      TORCH_CHECK(chosen.device().is_privateuseone(),
                  "Expected a 'sim' device type for generator but found '", chosen.device().type(),
                  "'");
      value = static_cast<DeviceGenerator*>(chosen.unsafeGetGeneratorImpl())->host;
      replaced = true;
    }
    if (replaced || !op_.hasTag(at::Tag::nondeterministic_seeded)) return;
    // The kernel knows of the CPU's generator only: lend it the device's state.
    at::Generator drawn = at::detail::getDefaultCPUGenerator();
    lent_ = drawn.get_state();
    drawn.set_state(device_host().get_state());
  }

  void restore_generator() {
    if (!lent_.defined()) return;
    at::Generator drawn = at::detail::getDefaultCPUGenerator();
    device_host().set_state(drawn.get_state());
    drawn.set_state(lent_);
    lent_ = Tensor();
  }

  at::Generator& device_host() {
    return static_cast<DeviceGenerator*>(
               default_generator(static_cast<c10::DeviceIndex>(device_)).unsafeGetGeneratorImpl())
        ->host;
  }

  c10::IValue back(const c10::IValue& value, int stream) {
    return map_tensors(value, [&](const Tensor& tensor) {
      if (tensor.defined()) check_dtype(tensor.scalar_type());
      return aliases_.device(tensor, device_, stream);
    });
  }

  const c10::OperatorHandle& op_;
  const c10::OperatorHandle& host_op_;
  Stack* stack_;
  const std::vector<c10::Argument>& arguments_;
  Aliases aliases_;
  std::vector<Block*> reads_, writes_;
  Tensor lent_;
  int device_ = 0;
  bool has_mask_ = false, is_collective_ = op_.schema().name().rfind("c10d::", 0) == 0;
};

void run_on_host(const c10::OperatorHandle& op, Stack* stack) { Call(op, stack).run(); }

void convolution(const c10::OperatorHandle& op, Stack* stack) {
  static auto host_op = c10::Dispatcher::singleton().findSchemaOrThrow("aten::convolution", "");
  Call(op, stack, &host_op).run();
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& gradient, const Tensor& input, const Tensor& weight, c10::SymIntArrayRef stride,
    c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, bool transposed,
    c10::SymIntArrayRef output_padding, c10::SymInt groups, std::array<bool, 3> mask) {
  static auto op = c10::Dispatcher::singleton().findSchemaOrThrow("aten::convolution_backward", "");
  Stack stack;
  std::vector<c10::SymInt> bias{gradient.sym_size(1)};
  torch::jit::push(stack, gradient, input, weight, mask[2] ? c10::IValue(bias) : c10::IValue(),
                   stride, padding, dilation, transposed, output_padding, groups,
                   c10::List<bool>({mask[0], mask[1], mask[2]}));
  Call(op, &stack).run();
  return {stack[0].toTensor(), stack[1].toTensor(), stack[2].toTensor()};
}

Tensor empty(c10::IntArrayRef size, std::optional<c10::ScalarType> dtype,
             std::optional<c10::Layout>, std::optional<Device> device, std::optional<bool> pinned,
             std::optional<c10::MemoryFormat> format) {
  TORCH_CHECK(!pinned.value_or(false), "Only dense CPU tensors can be pinned");
  check_dtype(c10::dtype_or_default(dtype));
  c10::DeviceGuard guard(device.value_or(Device(kPrivateUse1)));
  return at::detail::empty_generic(size, c10::GetAllocator(kPrivateUse1),
                                   c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride,
                     std::optional<c10::ScalarType> dtype, std::optional<c10::Layout>,
                     std::optional<Device> device, std::optional<bool> pinned) {
  TORCH_CHECK(!pinned.value_or(false), "Only dense CPU tensors can be pinned");
  check_dtype(c10::dtype_or_default(dtype));
  c10::DeviceGuard guard(device.value_or(Device(kPrivateUse1)));
  return at::detail::empty_strided_generic(size, stride, c10::GetAllocator(kPrivateUse1),
                                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}

// One piece of memory on each side, of the same layout. Only pinned memory can be copied without
// the host waiting.
void copy_bytes(const Tensor& source, const Tensor& target, bool non_blocking) {
  bool up = target.is_privateuseone();
  const Tensor &device = up ? target : source, &host = up ? source : target;
  Block* pinned = runtime().find_pinned(host.storage().data());
  auto* to = static_cast<char*>(target.mutable_data_ptr());
  auto* from = static_cast<const char*>(source.const_data_ptr());
  if (pinned && non_blocking) {
    Operation copy{up ? Operation::upload : Operation::download,
                   0,
                   block_of(device.storage()),
                   pinned,
                   to,
                   from,
                   source.nbytes()};
    return runtime().enqueue(std::move(copy));
  }
  std::vector<Block*> touched{block_of(device.storage())}, none;
  int stream = runtime().launch(device.device().index(), up ? none : touched, up ? touched : none,
                                "a copy");
  // A copy from pageable memory returns when the memory was read: the host waited, but not for the
  // stream.
  if (up && non_blocking)
    ++runtime().synchronizations;
  else if (up)
    runtime().synchronize_stream(stream);
  // What was downloaded earlier becomes visible first: it may be the same host memory.
  else
    runtime().synchronize_stream(stream);
  std::memcpy(to, from, source.nbytes());
}

void copy_between_sides(const Tensor& source, const Tensor& target, bool non_blocking) {
  bool same = source.scalar_type() == target.scalar_type() &&
              source.is_conj() == target.is_conj() && source.is_neg() == target.is_neg();
  bool dense = source.is_contiguous() && target.is_contiguous();
  dense = dense || (source.strides() == target.strides() && source.is_non_overlapping_and_dense());
  if (same && dense) return copy_bytes(source, target, non_blocking);
  // As CUDA does it: values are converted on the host, and what isn't dense goes through memory
  // that is.
  bool up = target.is_privateuseone();
  auto dtype = up ? target.scalar_type() : source.scalar_type();
  Tensor from = (up ? source.to(dtype) : source).resolve_conj().resolve_neg().contiguous();
  bool direct = same && target.is_contiguous() && !target.is_conj() && !target.is_neg();
  auto options = target.options().dtype(dtype).pinned_memory(false);
  Tensor to = direct ? target : at::empty(target.sizes(), options);
  copy_bytes(from, to, non_blocking);
  if (!direct) target.copy_(to, non_blocking);
}

Tensor copy_from(const Tensor& source, const Tensor& target, bool non_blocking) {
  if (target.numel() == 0) return target;
  Tensor expanded = source.expand_as(target);
  if (source.is_cpu() || target.is_cpu()) {
    c10::DeviceGuard guard(source.is_cpu() ? target.device() : source.device());
    copy_between_sides(expanded, target, non_blocking);
    return target;
  }
  Block *from = block_of(source.storage()), *to = block_of(target.storage());
  if (source.device() == target.device())
    runtime().launch(target.device().index(), {from}, {to}, "a copy");
  else
    runtime().launch_between(from, to);
  Aliases aliases;
  aliases.host(target).copy_(aliases.host(expanded));
  return target;
}

Tensor copy_from_and_resize(const Tensor& source, const Tensor& target) {
  target.resize_(source.sizes());
  return copy_from(source, target, false);
}

at::Scalar item(const Tensor& tensor) {
  int stream = runtime().launch(tensor.device().index(), {block_of(tensor.storage())}, {},
                                "item()");
  runtime().synchronize_stream(stream);
  Aliases aliases;
  return aliases.host(tensor).item();
}

void record_stream(Tensor& tensor, c10::Stream stream) {
  runtime().record_stream(block_of(tensor.storage()), stream_index(stream));
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", item);
  m.impl("record_stream", record_stream);
  m.impl("convolution_overrideable", torch::CppFunction::makeFromBoxedFunction<&convolution>());
  m.impl("convolution_backward_overrideable", convolution_backward);
  // Module.to keeps its parameters, as it does for CUDA: an optimizer may hold them already.
  m.impl("_has_compatible_shallow_copy_type", [](const Tensor&, const Tensor&) { return true; });
  // Without these, torch composes the norms of operators that can't read every layout, and that
  // keep other statistics.
  m.impl("native_group_norm", torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
  m.impl("native_layer_norm", torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
}

// The copy is what resolves a lazy conjugate or negative: torch's own way to resolve one would come
// back here.
TORCH_LIBRARY_IMPL(aten, Conjugate, m) {
  m.impl("_copy_from", torch::CppFunction::makeFallthrough());
}
TORCH_LIBRARY_IMPL(aten, Negative, m) {
  m.impl("_copy_from", torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }

#define SIM_LOWER(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define SIM_FP32(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
#define SIM_FP32_DTYPE(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32_set_opt_dtype)
#define SIM_PROMOTE(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, promote)

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  AT_FORALL_LOWER_PRECISION_FP(SIM_LOWER)
  AT_FORALL_FP32(SIM_FP32)
  AT_FORALL_FP32_SET_OPT_DTYPE(SIM_FP32_DTYPE)
  AT_FORALL_DIFFERENT_REDISPATCH_SIGNATURE(KERNEL_DIFFERENT_REDISPATCH_SIGNATURE_PRIVATEUSEONE)
  AT_FORALL_PROMOTE(SIM_PROMOTE)
}

// torch.distributed with gloo: it takes the host's tensors only, so it gets the aliases.
void register_collectives() {
  struct Silent final : c10::WarningHandler {
    void process(const c10::Warning&) override {
    }  // torch has kernels for PrivateUse1, which ask for a backend that there isn't
  } silent;
  c10::WarningUtils::WarningHandlerGuard guard(&silent);
  static torch::Library library(torch::Library::IMPL, "c10d", c10::DispatchKey::PrivateUse1,
                                __FILE__, __LINE__);
  for (const char* name :
       {"allreduce_", "allreduce_coalesced_", "broadcast_", "allgather_", "_allgather_base_",
        "gather_", "scatter_", "reduce_", "reduce_scatter_", "_reduce_scatter_base_", "alltoall_",
        "alltoall_base_", "send", "recv_", "barrier"})
    library.impl(name, torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
}

void configure(int devices, bool float64, bool bfloat16, bool streams, bool pinning) {
  static DeviceAllocator allocator;
  runtime().configure({devices, float64, bfloat16, streams, pinning});
  c10::SetAllocator(kPrivateUse1, &allocator);
  at::RegisterPrivateUse1HooksInterface(new Hooks);
  register_collectives();
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("configure", &configure);
  m.def("default_generator", [](int device) {
    return pybind11::reinterpret_steal<pybind11::object>(
        THPGenerator_Wrap(default_generator(static_cast<c10::DeviceIndex>(device))));
  });
  m.def("take_violations", [] { return runtime().take_violations(); });
  m.def("num_synchronizations", [] { return runtime().synchronizations.load(); });
  m.def("reset_synchronizations", [] { runtime().synchronizations = 0; });
  m.def("in_bad_fork", [] { return runtime().in_bad_fork.load(); });
  m.def("allocated", [](int device) { return runtime().allocated(device); });
  m.def("peak", [](int device) { return runtime().peak(device); });
  m.def("reset_peak", [](int device) { runtime().reset_peak(device); });
}

}  // namespace sim
