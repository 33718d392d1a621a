// The simulated machine: devices, streams whose work runs late, pinned memory, and the record of
// mistakes.
//
// Nothing here needs Python: every function may run while another thread holds the GIL.
#pragma once

#include <c10/core/Allocator.h>

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace sim {

struct Options {
  int devices = 1;
  bool float64 = true, bfloat16 = true, streams = true, pinning = true;
};

// One entry per stream: how many of its operations are known to be done. Two uses of a block of
// memory are in order when the later one's stream knows of the earlier one. This is what finds a
// missing wait even where the numbers happen to be right.
using Clock = std::vector<uint64_t>;

inline void merge(Clock& known, const Clock& other) {
  if (known.size() < other.size()) known.resize(other.size());
  for (size_t i = 0; i < other.size(); ++i) known[i] = std::max(known[i], other[i]);
}
inline uint64_t done(const Clock& known, int stream) {
  return stream < static_cast<int>(known.size()) ? known[stream] : 0;
}

// Memory of a device, or pinned memory of the host (device -1).
struct Block {
  char* data = nullptr;
  size_t size = 0;
  int device = -1;
  int home = 0;            // the stream that was current at the allocation
  int pending = 0;         // queued copies, and copies that the host hasn't seen the end of
  bool freed = false;      // by its owner; it goes when nothing is pending
  at::DataPtr adopted;     // holds memory that the CPU kernel of an operator allocated
  std::set<int> recorded;  // by record_stream
  Clock reads;
  int writer = -1;
  uint64_t written = 0;
};

struct Operation {
  enum Kind { upload, download, wait } kind;
  uint64_t number;  // in its stream
  Block *device = nullptr, *host = nullptr;
  char* to = nullptr;
  const char* from = nullptr;
  size_t bytes = 0;
  uint64_t hash = 0;  // of an upload's source when it was queued
  int stream = 0;     // to wait for, up to `upto`
  uint64_t upto = 0;
  std::vector<char> staged{};  // what a download read
};

struct Stream {
  int device;
  uint64_t last = 0;
  Clock clock{};
  std::deque<Operation> queue{};  // not yet run
  // Run, but the host hasn't synchronized with it: a download isn't visible yet, an upload's source
  // isn't free yet.
  std::deque<Operation> unseen{};
};

struct Event {
  int stream = -1;
  uint64_t number = 0;
  Clock clock{};
  bool queried = false;
  int64_t nanoseconds = 0;
};

// NaN in every floating type, -1 in signed integers.
constexpr int poison = 0xFF;

inline uint64_t hash_bytes(const char* data, size_t bytes) {
  uint64_t hash = 14695981039346656037ULL, word = 0;
  for (; bytes >= 8; data += 8, bytes -= 8) {
    std::memcpy(&word, data, 8);
    hash = (hash ^ word) * 1099511628211ULL;
    hash ^= hash >> 32;
  }
  for (; bytes > 0; ++data, --bytes)
    hash = (hash ^ static_cast<unsigned char>(*data)) * 1099511628211ULL;
  return hash;
}

class Runtime {
 public:
  Options options;
  std::atomic<int64_t> synchronizations{0};
  std::atomic<bool> initialized{false}, in_bad_fork{false};

  void configure(const Options& chosen) {
    options = chosen;
    for (int device = 0; device < options.devices; ++device) streams_.push_back({device});
    allocated_.resize(options.devices);
    peak_.resize(options.devices);
  }

  // ---- devices and streams. A stream is its place in streams_; those up to the number of devices
  // are the default ones.

  void check_device(int device) const {
    TORCH_CHECK(device >= 0 && device < options.devices, "sim: invalid device ordinal ", device,
                ": there are ", options.devices, " devices");
  }

  int& current_device() {
    thread_local int device = 0;
    return device;
  }

  int& current_stream(int device) {
    thread_local std::map<int, int> current;
    return current.try_emplace(device, device).first->second;
  }

  int new_stream(int device) {
    TORCH_CHECK(options.streams, "sim: this device has no streams (no-streams)");
    Lock lock(mutex_);
    streams_.push_back({device});
    return static_cast<int>(streams_.size()) - 1;
  }

  int device_of(int stream) {
    Lock lock(mutex_);
    return streams_.at(stream).device;
  }

  // The driver doesn't survive a fork, as CUDA's doesn't.
  void use() {
    TORCH_CHECK(!in_bad_fork,
                "Cannot re-initialize sim in forked subprocess. To use sim with multiprocessing, "
                "you must use the "
                "'spawn' start method");
    if (!initialized.exchange(true))
      pthread_atfork(nullptr, nullptr, [] { get().in_bad_fork = true; });
  }

  // ---- memory

  Block* allocate(size_t size, int device, at::DataPtr adopted = {}) {
    use();
    auto* block = new Block;
    block->size = size;
    block->device = device;
    if (adopted) {
      block->data = static_cast<char*>(adopted.get());
      block->adopted = std::move(adopted);
    } else if (size > 0) {
      block->data = static_cast<char*>(std::aligned_alloc(64, (size + 63) / 64 * 64));
      TORCH_CHECK(block->data, "sim: no memory for ", size, " bytes");
      std::memset(block->data, poison, size);
    }
    Lock lock(mutex_);
    if (device < 0) {
      if (size > 0) pinned_[block->data] = block;
    } else {
      block->home = current_stream(device);
      allocated_[device] += static_cast<int64_t>(size);
      peak_[device] = std::max(peak_[device], allocated_[device]);
    }
    return block;
  }

  void free(Block* block) {
    if (in_bad_fork) return;  // another thread may have held the lock at the fork
    Lock lock(mutex_);
    if (block->device < 0) {
      drop_unseen(block);
      pinned_.erase(block->data);
    } else {
      check_free(*block);
      allocated_[block->device] -= static_cast<int64_t>(block->size);
    }
    block->freed = true;
    if (block->pending == 0) destroy(block);
  }

  Block* find_pinned(const void* data) {
    if (in_bad_fork) return nullptr;
    Lock lock(mutex_);
    auto* byte = static_cast<char*>(const_cast<void*>(data));
    auto after = pinned_.upper_bound(byte);
    if (after == pinned_.begin()) return nullptr;
    Block* block = std::prev(after)->second;
    return byte < block->data + block->size ? block : nullptr;
  }

  void record_stream(Block* block, int stream) {
    Lock lock(mutex_);
    block->recorded.insert(stream);
  }

  int64_t allocated(int device) {
    Lock lock(mutex_);
    return allocated_.at(device);
  }
  int64_t peak(int device) {
    Lock lock(mutex_);
    return peak_.at(device);
  }
  void reset_peak(int device) {
    Lock lock(mutex_);
    peak_.at(device) = allocated_.at(device);
  }

  // ---- work

  // Compute runs as it is launched, after all that its stream holds. Returns the stream.
  int launch(int device, const std::vector<Block*>& reads, const std::vector<Block*>& writes,
             const std::string& what) {
    Lock lock(mutex_);
    int stream = current_stream(device);
    begin(stream);
    for (Block* block : reads) touch(*block, stream, false, what);
    for (Block* block : writes) touch(*block, stream, true, what);
    advance(stream, streams_[stream].last);
    return stream;
  }

  // What a launch allocated was written by it.
  void wrote(Block* block, int stream) {
    Lock lock(mutex_);
    block->home = block->writer = stream;
    block->written = streams_[stream].last;
  }

  // The copy runs when its stream is driven on: by compute in it, by a stream that waits for it, or
  // by the host.
  void enqueue(Operation copy) {
    Lock lock(mutex_);
    bool up = copy.kind == Operation::upload;
    int stream = current_stream(copy.device->device);
    // Neither the old content nor zeros may pass for the copy's result. Other pending copies may
    // still need what is there.
    Block* target = up ? copy.device : copy.host;
    if (target->pending == 0) std::memset(copy.to, poison, copy.bytes);
    begin(stream);
    touch(*(up ? copy.host : copy.device), stream, false,
          up ? "a copy to the device" : "a copy to the host");
    touch(*target, stream, true, up ? "a copy to the device" : "a copy to the host");
    copy.number = streams_[stream].last;
    if (up) copy.hash = hash_bytes(copy.from, copy.bytes);
    ++copy.device->pending;
    ++copy.host->pending;
    streams_[stream].queue.push_back(std::move(copy));
  }

  // A copy between devices: it runs in the source's stream, and each of the two streams waits for
  // the other.
  void launch_between(Block* from, Block* to) {
    Lock lock(mutex_);
    int source = current_stream(from->device), target = current_stream(to->device);
    merge(streams_[source].clock, streams_[target].clock);
    begin(source);
    touch(*from, source, false, "a copy between devices");
    touch(*to, source, true, "a copy between devices");
    advance(target, streams_[target].last);
    advance(source, streams_[source].last);
    merge(streams_[target].clock, streams_[source].clock);
  }

  void record(Event& event, int stream) {
    Lock lock(mutex_);
    begin(stream);
    event.stream = stream;
    event.number = streams_[stream].last;
    event.clock = streams_[stream].clock;
    event.queried = false;
  }

  void wait(int stream, const Event& event) {
    Lock lock(mutex_);
    if (event.stream < 0 || event.stream == stream) return;
    begin(stream);
    merge(streams_[stream].clock, event.clock);
    Operation operation{Operation::wait, streams_[stream].last};
    operation.stream = event.stream;
    operation.upto = event.number;
    streams_[stream].queue.push_back(std::move(operation));
  }

  // ---- the host waits

  void synchronize_stream(int stream) {
    ++synchronizations;
    {
      Lock lock(mutex_);
      catch_up(stream, streams_[stream].last, streams_[stream].clock);
    }
    raise_violations();
  }

  void synchronize_event(const Event& event) {
    ++synchronizations;
    if (event.stream >= 0) {
      Lock lock(mutex_);
      catch_up(event.stream, event.number, event.clock);
    }
    raise_violations();
  }

  void synchronize_device(int device) {
    ++synchronizations;
    {
      Lock lock(mutex_);
      for (int stream = 0; stream < static_cast<int>(streams_.size()); ++stream)
        if (streams_[stream].device == device)
          catch_up(stream, streams_[stream].last, streams_[stream].clock);
    }
    raise_violations();
  }

  // Work takes time: the first question after a record finds it unfinished, the second finds it
  // done.
  bool query(Event& event) {
    if (event.stream < 0) return true;
    Lock lock(mutex_);
    bool finished = done(host_, event.stream) >= event.number || event.queried;
    event.queried = true;
    if (finished) catch_up(event.stream, event.number, event.clock);
    return finished;
  }

  bool query_stream(int stream) {
    Lock lock(mutex_);
    Stream& asked = streams_[stream];
    bool finished = asked.queue.empty() && asked.unseen.empty();
    catch_up(stream, asked.last, asked.clock);
    return finished;
  }

  // ---- mistakes

  std::vector<std::string> take_violations() {
    Lock lock(mutex_);
    // A source that is still in use and no longer what it was is a mistake already.
    for (Stream& stream : streams_)
      for (auto* operations : {&stream.queue, &stream.unseen})
        for (Operation& operation : *operations) check_source(operation);
    unraised_ = false;
    return std::exchange(violations_, {});
  }

  void raise_violations() {
    std::string text;
    {
      Lock lock(mutex_);
      if (!std::exchange(unraised_, false)) return;
      for (const auto& violation : violations_) text += "\n  " + violation;
    }
    TORCH_CHECK(false, "sim found mistakes that a GPU would answer with wrong numbers:", text);
  }

  static Runtime& get() {
    static auto* runtime = new Runtime;  // never destroyed: tensors may outlive every static object
    return *runtime;
  }

 private:
  using Lock = std::lock_guard<std::recursive_mutex>;

  std::string name(int stream) {
    std::ostringstream text;
    if (stream < options.devices)
      text << "the default stream";
    else
      text << "stream " << stream;
    text << " of sim:" << streams_[stream].device;
    return text.str();
  }

  std::string name(const Block& block) {
    std::ostringstream text;
    if (block.device < 0)
      text << "pinned memory of " << block.size << " bytes";
    else
      text << "memory of " << block.size << " bytes on sim:" << block.device;
    return text.str();
  }

  void violation(const std::string& text) {
    // One mistake in a loop is one text.
    if (std::find(violations_.begin(), violations_.end(), text) == violations_.end())
      violations_.push_back(text);
    unraised_ = true;
  }

  // Another operation of the stream: it comes after all that the host has seen done.
  void begin(int stream) {
    Stream& running = streams_[stream];
    merge(running.clock, host_);
    if (running.clock.size() <= static_cast<size_t>(stream)) running.clock.resize(stream + 1);
    running.clock[stream] = ++running.last;
  }

  void touch(Block& block, int stream, bool write, const std::string& what) {
    const Clock& known = streams_[stream].clock;
    auto check = [&](int other, uint64_t number, const char* did) {
      if (other != stream && done(known, other) < number)
        violation(what + " in " + name(stream) + (write ? " writes " : " reads ") + name(block) +
                  " that " + name(other) + " " + did +
                  ", with no wait between them: use wait_stream or wait_event");
    };
    if (block.writer >= 0) check(block.writer, block.written, "writes");
    if (!write) {
      if (block.reads.size() <= static_cast<size_t>(stream)) block.reads.resize(stream + 1);
      block.reads[stream] = streams_[stream].last;
      return;
    }
    for (int other = 0; other < static_cast<int>(block.reads.size()); ++other)
      if (block.reads[other] > 0) check(other, block.reads[other], "reads");
    block.reads.clear();
    block.writer = stream;
    block.written = streams_[stream].last;
  }

  // The allocator gives freed memory to the next work of the stream it was allocated in, as CUDA's
  // does.
  void check_free(const Block& block) {
    auto check = [&](int stream, uint64_t number) {
      if (stream == block.home || block.recorded.count(stream)) return;
      if (done(streams_[block.home].clock, stream) >= number || done(host_, stream) >= number)
        return;
      violation(name(block) + ", allocated in " + name(block.home) + ", was freed while " +
                name(stream) +
                " may still use it: call record_stream, or let the first wait for the second");
    };
    if (block.writer >= 0) check(block.writer, block.written);
    for (int stream = 0; stream < static_cast<int>(block.reads.size()); ++stream)
      if (block.reads[stream] > 0) check(stream, block.reads[stream]);
  }

  // When a copy is run, and once more when the host knows of it: until then the source is its own.
  void check_source(Operation& operation) {
    if (operation.kind != Operation::upload) return;
    uint64_t hash = hash_bytes(operation.from, operation.bytes);
    if (std::exchange(operation.hash, hash) != hash)
      violation(name(*operation.host) + " was changed while a copy of " +
                std::to_string(operation.bytes) +
                " bytes from it to sim:" + std::to_string(operation.device->device) +
                " was pending: wait for the copy's event first");
  }

  void destroy(Block* block) {
    if (!block->adopted) {
      if (block->data) std::memset(block->data, poison, block->size);
      std::free(block->data);
    }
    delete block;
  }

  void release(Block* block) {
    if (--block->pending == 0 && block->freed) destroy(block);
  }

  void release(const Operation& operation) {
    if (operation.device) release(operation.device);
    if (operation.host) release(operation.host);
  }

  // Run what the stream holds, up to and with an operation.
  void advance(int stream, uint64_t upto) {
    auto& queue = streams_[stream].queue;
    while (!queue.empty() && queue.front().number <= upto) {
      Operation operation = std::move(queue.front());
      queue.pop_front();
      if (operation.kind == Operation::wait) advance(operation.stream, operation.upto);
      if (operation.kind == Operation::download)
        operation.staged.assign(operation.from, operation.from + operation.bytes);
      if (operation.kind == Operation::upload) {
        check_source(operation);
        std::memcpy(operation.to, operation.from, operation.bytes);
      }
      if (operation.host && operation.host->freed)
        release(operation);
      else
        streams_[stream].unseen.push_back(std::move(operation));
    }
  }

  // The host knows of everything up to and with an operation of the stream.
  void land(int stream, uint64_t upto) {
    auto& unseen = streams_[stream].unseen;
    while (!unseen.empty() && unseen.front().number <= upto) {
      Operation operation = std::move(unseen.front());
      unseen.pop_front();
      if (operation.kind == Operation::wait) land(operation.stream, operation.upto);
      if (operation.kind == Operation::download)
        std::memcpy(operation.to, operation.staged.data(), operation.bytes);
      check_source(operation);
      release(operation);
    }
  }

  void catch_up(int stream, uint64_t upto, Clock known) {
    advance(stream, upto);
    land(stream, upto);
    merge(host_, known);
  }

  // Nobody can change, or read, pinned memory that was freed: what it was kept for ends here.
  void drop_unseen(Block* block) {
    for (Stream& stream : streams_) {
      std::deque<Operation> kept;
      for (Operation& operation : stream.unseen) {
        if (operation.host != block) {
          kept.push_back(std::move(operation));
          continue;
        }
        check_source(operation);
        release(operation);
      }
      stream.unseen = std::move(kept);
    }
  }

  std::recursive_mutex mutex_;
  std::deque<Stream> streams_;
  std::map<char*, Block*> pinned_;
  std::vector<int64_t> allocated_, peak_;
  Clock host_;
  std::vector<std::string> violations_;
  bool unraised_ = false;
};

}  // namespace sim
