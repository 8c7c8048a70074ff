/** Layout of what crosses the native border for a command ring: records of commands out, completions in. As in native/tcmu_ring.h. */

/** Kinds of records: the low half of word 1. */
export const RECORD_COMMAND = 1;
export const RECORD_TASK_MANAGEMENT = 2;
/** A command that points outside of what it may. It has to be completed, but there are no CDB and no data. */
export const RECORD_MALFORMED = 3;
/** An entry of an opcode that is not known: it was marked so in the ring, and is over; the kernel has yet to be woken. */
export const RECORD_UNKNOWN = 4;
/** A command that was in the ring, or on its way into it, before a reset was noticed: what it takes may have been written over. */
export const RECORD_DOUBTFUL = 5;

// Words of a record.
export const RECORD_WORDS = 0;
/** Kind; in the high half the CDB's length, or the task management function. */
export const RECORD_KIND = 1;
export const RECORD_ID = 2;
/** Iovecs of data; of task management: command ids. */
export const RECORD_IOVECS = 3;
/** Iovecs of a bidirectional command's data-in, behind the others. */
export const RECORD_BIDIRECTIONAL = 4;
/** Bytes in the data iovecs. */
export const RECORD_BYTES = 5;
/** The CDB, padded with zeros to 16 bytes or a multiple of 4; then offset in the region and length of each iovec. */
export const RECORD_CDB = 6;
/** Task management: the ids, a word each. */
export const RECORD_IDS = 4;

/** Words of a batch: room for the longest scatter-gather list of one command, 500 KiB. */
export const BATCH_WORDS = 128 * 1024;

/** The response says how much data-in there is: READ_LEN of the kernel's flags. */
export const COMPLETE_READ_LENGTH = 2;

const COMPLETION_WORDS = 4;
const SENSE_WORDS = 24;
/** Sense data of a response, bytes: all of them are copied to the initiator. */
const SENSE_BYTES = 4 * SENSE_WORDS;
const CAPACITY = 1024 * COMPLETION_WORDS;

/** Completions on their way into the ring. Reused. */
export class CompletionBatch {
  readonly words = new Uint32Array(CAPACITY);
  /** Words in use. */
  count = 0;
  readonly #bytes = new Uint8Array(this.words.buffer);

  get isEmpty(): boolean {
    return this.count === 0;
  }

  /** No room for another completion for certain: hand these over first. */
  get isFull(): boolean {
    return this.count > CAPACITY - COMPLETION_WORDS - SENSE_WORDS;
  }

  /** @param readLength bytes of data-in that there are; 0: as many as the initiator expects */
  add(id: number, status: number, readLength: number): void {
    const { words, count } = this;
    words[count] = id;
    words[count + 1] = status | ((readLength > 0 ? COMPLETE_READ_LENGTH : 0) << 8);
    words[count + 2] = readLength;
    words[count + 3] = 0;
    this.count = count + COMPLETION_WORDS;
  }

  /** A completion with sense data; what it leaves of the response's 96 bytes is zeros. */
  addWithSense(id: number, status: number, sense: Uint8Array, senseLength: number): void {
    this.add(id, status, 0);
    this.words[this.count - 1] = 1;
    const at = 4 * this.count;
    const length = Math.min(senseLength, SENSE_BYTES);
    this.#bytes.fill(0, at, at + SENSE_BYTES);
    for (let i = 0; i < length; i++) this.#bytes[at + i] = sense[i] as number;
    this.count += SENSE_WORDS;
  }

  clear(): void {
    this.count = 0;
  }
}
