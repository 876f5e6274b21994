// Writes the seed inputs of the fuzz targets: fuzz_corpus DIRECTORY. Small valid files of every dtype by the
// project's own writers, and header texts for the framed mode of the targets.
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "base/file.hpp"
#include "base/npy.hpp"
#include "base/tensor.hpp"
#include "dispatch/fit_file.hpp"
#include "dispatch/profile_file.hpp"
#include "loader/safetensors.hpp"

namespace {

using namespace ramp::core;

constexpr ramp_dtype kDtypes[] = {RAMP_F32, RAMP_F16, RAMP_BF16, RAMP_E4M3,
                                  RAMP_I32, RAMP_I64, RAMP_U8,   RAMP_F64};

void safetensors_seeds(const std::string& dir) {
  const std::vector<double> data(64, 1.0);
  std::vector<NamedTensor> all;
  for (const ramp_dtype d : kDtypes) {
    const NamedTensor one{std::string("t.") + dtype_name(d), make_tensor(data.data(), d, {2, 3})};
    all.push_back(one);
    write_safetensors(dir + "/one_" + dtype_name(d), std::span(&one, 1));
  }
  all.push_back({"empty", make_tensor(nullptr, RAMP_F32, {0, 7})});
  all.push_back({"scalar", make_tensor(data.data(), RAMP_F32, {})});
  write_safetensors(dir + "/all", all, {{"format", "pt"}});
  write_text(dir + "/nothing", std::string("\x02\0\0\0\0\0\0\0{}", 10));
  // Framed mode: the first byte is the number of data bytes.
  const char* const headers[] = {
      R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
      R"({"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
      R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"BF16","shape":[1],"data_offsets":[2,4]}})",
      R"({"a":{"dtype":"F4","shape":[8],"data_offsets":[0,4]}})"};
  int n = 0;
  for (const char* header : headers)
    write_text(dir + "/framed_" + std::to_string(n++), std::string("\x04") + header);
}

void npy_seeds(const std::string& dir) {
  const std::vector<double> data(64, 1.0);
  for (const ramp_dtype d : kDtypes) {
    write_npy(dir + "/matrix_" + dtype_name(d), make_tensor(data.data(), d, {2, 3}));
    write_npy(dir + "/scalar_" + dtype_name(d), make_tensor(data.data(), d, {}));
  }
  write_npy(dir + "/empty", make_tensor(nullptr, RAMP_F32, {0, 3}));
  write_text(dir + "/framed", "\x08{'descr': '<f4', 'fortran_order': True, 'shape': (1, 2), }\n");
  write_text(dir + "/framed_void", "\x04{'descr': '|V2', 'fortran_order': False, 'shape': (2,)}");
  write_text(dir + "/framed_object", "\x04{'descr': '|O', 'fortran_order': False, 'shape': (1,)}");
  std::string v2("\x93NUMPY\x02\0", 8);
  const std::string header = "{'descr': '<i8', 'fortran_order': False, 'shape': (1,)}";
  v2 += {static_cast<char>(header.size()), '\0', '\0', '\0'};
  write_text(dir + "/version2", v2 + header + std::string(8, 'x'));
}

void config_seeds(const std::string& dir) {
  write_text(dir + "/mixtral",
             R"({"model_type":"mixtral","hidden_act":"silu","hidden_size":64,"intermediate_size":128,)"
             R"("num_local_experts":8,"num_experts_per_tok":2,"num_hidden_layers":2})");
  write_text(
      dir + "/deepseek_v3",
      R"({"model_type":"deepseek_v3","n_routed_experts":256,"num_experts_per_tok":8,"n_group":8,"topk_group":4,)"
      R"("topk_method":"noaux_tc","scoring_func":"sigmoid","norm_topk_prob":true,"routed_scaling_factor":2.5,)"
      R"("first_k_dense_replace":3,"moe_layer_freq":1,"n_shared_experts":1,)"
      R"("quantization_config":{"quant_method":"fp8","weight_block_size":[128,128]}})");
  write_text(
      dir + "/qwen",
      R"({"model_type":"x","text_config":{"model_type":"qwen3_moe","num_experts":4,"num_experts_per_tok":2,)"
      R"("decoder_sparse_step":2,"mlp_only_layers":[1,2],"moe_layer_freq":[0,1]}})");
}

constexpr const char* kPoints =
    "point,model,experts,top_k,hidden,intermediate,tokens,zipf,split,histogram\n"
    "p0,m,4,2,128,128,1,0.0,train,1 1 0 0\np1,m,4,2,128,128,64,1.2,train,60 40 20 8\n"
    "p2,m,4,2,128,128,16,0.0,test,8 8 8 8\n";
constexpr const char* kConfigs[] = {
    "config,tile_m,tile_n\na,8,256\nb,64,256\n",
    "config,tile_m,tile_n,warps_n,stages,threads\na,8,256,8,2,384\nb,64,256,8,4,384\n",
    "config,tile_m,tile_n,residency,magic,swizzle\na,8,128,2,0.5,wide\nb,64,256,1,7,\n"};
constexpr const char* kTimings =
    "point,config,us,us_repeat\np0,a,5,5.1\np0,b,9,\np1,a,60,61\np1,b,20,\np2,a,12,\np2,b,11,\n";

void dataset_seeds(const std::string& dir) {
  int n = 0;
  for (const char* configs : kConfigs) {
    const std::string text = std::string(kPoints) + '\x1e' + configs + '\x1e' + kTimings;
    write_text(dir + "/whole_" + std::to_string(n), text);
    write_text(dir + "/missing_" + std::to_string(n++), "?" + text.substr(0, text.size() - 10));
  }
}

void fit_seeds(const std::string& dir) {
  for (const char* configs : kConfigs) {
    const Dataset d = parse_dataset(kPoints, configs, kTimings);
    for (const std::string_view name : cost_model_names()) {
      static int n = 0;
      write_fit(dir + "/fit_" + std::to_string(n++), fit_dataset(d, name, h200(), {}));
    }
  }
}

void profile_seeds(const std::string& dir) {
  int n = 0;
  for (const char* configs : kConfigs)
    write_profile(dir + "/profile_" + std::to_string(n++), {}, parse_dataset(kPoints, configs, kTimings));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fputs("usage: fuzz_corpus DIRECTORY\n", stderr);
    return 2;
  }
  try {
    const std::string root = argv[1];
    for (const char* name :
         {"fuzz_safetensors", "fuzz_npy", "fuzz_model_config", "fuzz_dataset", "fuzz_fit", "fuzz_profile"})
      std::filesystem::create_directories(root + "/" + name);
    safetensors_seeds(root + "/fuzz_safetensors");
    npy_seeds(root + "/fuzz_npy");
    config_seeds(root + "/fuzz_model_config");
    dataset_seeds(root + "/fuzz_dataset");
    fit_seeds(root + "/fuzz_fit");
    profile_seeds(root + "/fuzz_profile");
  } catch (const std::exception& e) {
    std::fprintf(stderr, "fuzz_corpus: %s\n", e.what());
    return 1;
  }
  return 0;
}
