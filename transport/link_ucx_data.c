#include "transport/link_ucx_data.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"
#include "base/memory.h"

enum { AM_FRAME = 1, AM_CREDIT = 2 };
enum { HEADER_BYTES = sizeof(struct frame_header) };

static void data_broke(struct ucx_data *data, const char *what, ucs_status_t status) {
    char reason[128];
    snprintf(reason, sizeof(reason), "%s: %s", what, ucs_status_string(status));
    conn_broke(data->conn, reason);
}

static void operation_ended(struct ucx_data *data) {
    CHECK(data->operation_count > 0);
    data->operation_count--;
    data->ended = data->closed && data->operation_count == 0;
    data->conn->port->happened = true;
}

// -- sending -------------------------------------------------------------------------------------

static size_t rest_bytes_of(const struct frame *frame) {
    return frame->size_bytes - HEADER_BYTES;
}

static struct ucx_data *data_of_link(const struct link *link) {
    return link->conn->data;
}

static void frame_sent(void *request, ucs_status_t status, void *user_data) {
    struct send_slot *slot = user_data;
    struct ucx_data *data = data_of_link(slot->link);
    if (status != UCS_OK) data_broke(data, "a frame cannot be sent", status);
    ucp_request_free(request);
    send_slot_done(slot);
    operation_ended(data);
}

void ucx_data_send_frame(struct ucx_data *data, struct send_slot *slot) {
    ucp_request_param_t param = {.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK |
                                                 UCP_OP_ATTR_FIELD_USER_DATA |
                                                 UCP_OP_ATTR_FIELD_MEMORY_TYPE,
                                 .memory_type = UCS_MEMORY_TYPE_HOST,
                                 .cb.send = frame_sent,
                                 .user_data = slot};
    ucs_status_ptr_t request =
        ucp_am_send_nbx(data->ep, AM_FRAME, slot->frame->data, HEADER_BYTES,
                        slot->frame->data + HEADER_BYTES, rest_bytes_of(slot->frame), &param);
    if (UCS_PTR_IS_ERR(request)) {
        data_broke(data, "a frame cannot be sent", UCS_PTR_STATUS(request));
        send_slot_done(slot);
    } else if (request == NULL) {
        send_slot_done(slot);
    } else {
        data->operation_count++;
    }
}

static void credit_sent(void *request, ucs_status_t status, void *user_data) {
    struct ucx_data *data = user_data;
    data->credit_busy = false;
    if (status != UCS_OK) data_broke(data, "a credit cannot be sent", status);
    ucp_request_free(request);
    operation_ended(data);
}

bool ucx_data_send_credit(struct ucx_data *data, const struct link_credit *credit) {
    if (data->ep == NULL || data->credit_busy) return false;
    data->credit = *credit;
    ucp_request_param_t param = {.op_attr_mask =
                                     UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
                                 .cb.send = credit_sent,
                                 .user_data = data};
    ucs_status_ptr_t request =
        ucp_am_send_nbx(data->ep, AM_CREDIT, &data->credit, sizeof(data->credit), NULL, 0, &param);
    if (UCS_PTR_IS_ERR(request)) {
        data_broke(data, "a credit cannot be sent", UCS_PTR_STATUS(request));
    } else if (request != NULL) {
        data->credit_busy = true;
        data->operation_count++;
    }
    return true;
}

// -- receiving -----------------------------------------------------------------------------------

static void frame_fetched(void *request, ucs_status_t status, size_t length_bytes,
                          void *user_data) {
    struct receive_slot *slot = user_data;
    struct ucx_data *data = data_of_link(slot->link);
    if (status != UCS_OK) data_broke(data, "a frame cannot be received", status);
    ucp_request_free(request);
    receive_slot_done(slot, status == UCS_OK && length_bytes == rest_bytes_of(slot->frame));
    operation_ended(data);
}

static void fetch_frame(struct ucx_data *data, struct receive_slot *slot, void *descriptor) {
    ucp_request_param_t param = {.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK |
                                                 UCP_OP_ATTR_FIELD_USER_DATA |
                                                 UCP_OP_ATTR_FIELD_MEMORY_TYPE,
                                 .memory_type = UCS_MEMORY_TYPE_HOST,
                                 .cb.recv_am = frame_fetched,
                                 .user_data = slot};
    ucs_status_ptr_t request =
        ucp_am_recv_data_nbx(data->worker, descriptor, slot->frame->data + HEADER_BYTES,
                             rest_bytes_of(slot->frame), &param);
    if (UCS_PTR_IS_ERR(request)) {
        data_broke(data, "a frame cannot be received", UCS_PTR_STATUS(request));
        receive_slot_done(slot, false);
    } else if (request == NULL) {
        receive_slot_done(slot, true);
    } else {
        data->operation_count++;
    }
}

// Large frames come by rendezvous: only their header is here, and UCX fetches the rest into the
// buffer that we name. Small ones are here whole and are copied.
static ucs_status_t frame_arrived(void *arg, const void *header, size_t header_bytes, void *rest,
                                  size_t rest_bytes, const ucp_am_recv_param_t *param) {
    struct ucx_data *data = arg;
    if (data->ending) return UCS_OK;
    struct receive_slot *slot = conn_receive_frame(data->conn, header, header_bytes, rest_bytes);
    if (slot == NULL) return UCS_OK; // UCX drops the data, or tells the sender so
    if (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) {
        fetch_frame(data, slot, rest);
        return UCS_INPROGRESS;
    }
    memcpy(slot->frame->data + HEADER_BYTES, rest, rest_bytes);
    receive_slot_done(slot, true);
    return UCS_OK;
}

static ucs_status_t credit_arrived(void *arg, const void *header, size_t header_bytes,
                                   void *payload, size_t payload_bytes,
                                   const ucp_am_recv_param_t *param) {
    struct ucx_data *data = arg;
    (void)payload;
    (void)param;
    // Whatever is not a credit to the letter has a size that no message has.
    bool plausible = header_bytes == sizeof(struct link_credit) && payload_bytes == 0;
    if (!data->ending) conn_receive_message(data->conn, header, plausible ? header_bytes : 0);
    return UCS_OK;
}

// -- life ----------------------------------------------------------------------------------------

static ucs_status_t data_set_handler(struct ucx_data *data, unsigned id,
                                     ucp_am_recv_callback_t arrived) {
    ucp_am_handler_param_t param = {
        .field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_FLAGS |
                      UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG,
        .id = id,
        .flags = UCP_AM_FLAG_WHOLE_MSG,
        .cb = arrived,
        .arg = data};
    return ucp_worker_set_am_recv_handler(data->worker, &param);
}

static ucs_status_t data_set_up(struct ucx_data *data, ucp_context_h context) {
    ucp_worker_params_t worker_params = {.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE,
                                         .thread_mode = UCS_THREAD_MODE_SINGLE};
    ucs_status_t status = ucp_worker_create(context, &worker_params, &data->worker);
    if (status != UCS_OK) return status;
    status = data_set_handler(data, AM_FRAME, frame_arrived);
    if (status == UCS_OK) status = data_set_handler(data, AM_CREDIT, credit_arrived);
    if (status != UCS_OK) return status;
    return ucp_worker_get_efd(data->worker, &data->event_fd);
}

enum status ucx_data_open(ucp_context_h context, struct conn *conn, struct ucx_data **data_out) {
    struct ucx_data *data = memory_array(1, sizeof(*data));
    if (data == NULL) return STATUS_NO_MEMORY;
    data->conn = conn;
    ucs_status_t status = data_set_up(data, context);
    if (status != UCS_OK) {
        log_error("UCX worker: %s", ucs_status_string(status));
        ucx_data_close(data);
        return STATUS_IO;
    }
    *data_out = data;
    return STATUS_OK;
}

void ucx_data_close(struct ucx_data *data) {
    if (data == NULL) return;
    if (data->worker != NULL) ucp_worker_destroy(data->worker);
    free(data);
}

enum status ucx_data_address(struct ucx_data *data, ucp_address_t **address_out,
                             size_t *address_bytes_out) {
    ucs_status_t status = ucp_worker_get_address(data->worker, address_out, address_bytes_out);
    if (status == UCS_OK) return STATUS_OK;
    log_error("UCX worker address: %s", ucs_status_string(status));
    return STATUS_IO;
}

void ucx_data_free_address(struct ucx_data *data, ucp_address_t *address) {
    ucp_worker_release_address(data->worker, address);
}

static void endpoint_failed(void *arg, ucp_ep_h ep, ucs_status_t status) {
    (void)ep;
    data_broke(arg, "the connection broke", status);
}

enum status ucx_data_join(struct ucx_data *data, const void *address) {
    ucp_ep_params_t params = {.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS |
                                            UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                                            UCP_EP_PARAM_FIELD_ERR_HANDLER,
                              .address = address,
                              .err_mode = UCP_ERR_HANDLING_MODE_PEER,
                              .err_handler = {.cb = endpoint_failed, .arg = data}};
    ucs_status_t status = ucp_ep_create(data->worker, &params, &data->ep);
    if (status == UCS_OK) return STATUS_OK;
    data->ep = NULL;
    return STATUS_UNAVAILABLE;
}

// -- progress and end ----------------------------------------------------------------------------

bool ucx_data_progress(struct ucx_data *data) {
    return data->ep != NULL && ucp_worker_progress(data->worker) != 0;
}

static void data_flushed(void *request, ucs_status_t status, void *user_data) {
    struct ucx_data *data = user_data;
    (void)status;
    data->flushed = true;
    ucp_request_free(request);
    operation_ended(data);
}

void ucx_data_flush(struct ucx_data *data) {
    if (data->ep == NULL) {
        data->flushed = true;
        return;
    }
    ucp_request_param_t param = {.op_attr_mask =
                                     UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
                                 .cb.send = data_flushed,
                                 .user_data = data};
    ucs_status_ptr_t request = ucp_ep_flush_nbx(data->ep, &param);
    if (request == NULL || UCS_PTR_IS_ERR(request))
        data->flushed = true;
    else
        data->operation_count++;
}

static void endpoint_closed(void *request, ucs_status_t status, void *user_data) {
    struct ucx_data *data = user_data;
    (void)status;
    data->closed = true;
    ucp_request_free(request);
    operation_ended(data);
}

// UCX cannot turn a close that flushes into a forced one later, so what must leave is flushed
// before (ucx_data_flush) and every close is forced.
void ucx_data_end(struct ucx_data *data) {
    data->ending = true;
    data->operation_count++;
    ucs_status_ptr_t request = NULL;
    if (data->ep != NULL) {
        ucp_request_param_t param = {.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK |
                                                     UCP_OP_ATTR_FIELD_USER_DATA |
                                                     UCP_OP_ATTR_FIELD_FLAGS,
                                     .flags = UCP_EP_CLOSE_FLAG_FORCE,
                                     .cb.send = endpoint_closed,
                                     .user_data = data};
        request = ucp_ep_close_nbx(data->ep, &param);
    }
    if (request != NULL && !UCS_PTR_IS_ERR(request)) return;
    data->closed = true;
    operation_ended(data);
}
