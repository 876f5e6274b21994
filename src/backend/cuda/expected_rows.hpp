// How many rows the host may expect of a call whose ids it does not see. Under expert parallelism the ids are
// those of all experts, of which a shard holds some: the slots of the others bring it no rows.
#pragma once

#include <algorithm>
#include <cstdint>

#include "backend/backend.hpp"

namespace ramp::core::cuda {

// Tokens of a call without an expert map that would bring these weights as many rows. At least 1 where the
// call has tokens. (A shard may have fewer experts than k: each of them then is a token's at most once.)
inline int64_t expected_tokens(const BlockCall& call) noexcept {
  const auto global = static_cast<int64_t>(call.expert_map.size());
  const int64_t local = call.weights->experts;
  if (global <= local || local <= 0 || call.tokens <= 0) return call.tokens;
  // T * k < 2^31, and experts of a map are counted in 32 bits.
  const int64_t rows = (call.tokens * call.top_k * local + global - 1) / global;
  const int64_t per_token = std::max<int64_t>(1, std::min(call.top_k, local));
  return std::min(call.tokens, (rows + per_token - 1) / per_token);
}
// Its k: no token goes to more experts than there are.
inline int64_t expected_top_k(const BlockCall& call) noexcept {
  const bool shard = static_cast<int64_t>(call.expert_map.size()) > call.weights->experts;
  return shard ? std::min(call.top_k, call.weights->experts) : call.top_k;
}

}  // namespace ramp::core::cuda
