/** Persistent reservation types (SPC-4 table 63). */
export const WRITE_EXCLUSIVE = 1;
export const EXCLUSIVE_ACCESS = 3;
export const WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 5;
export const EXCLUSIVE_ACCESS_REGISTRANTS_ONLY = 6;
export const WRITE_EXCLUSIVE_ALL_REGISTRANTS = 7;
export const EXCLUSIVE_ACCESS_ALL_REGISTRANTS = 8;

/** An I_T nexus that has registered a reservation key. */
export interface Registration {
  /** The initiator port: see TransportId.port. */
  readonly port: string;
  readonly transportId: Uint8Array;
  /** 0: every port of the target. */
  readonly relativeTargetPort: number;
  /** 16 hexadecimal digits; never all zero. */
  readonly key: string;
}

/** Persistent reservations of one unit. A change makes a new state, so that one that could not be saved never was. */
export interface ReservationState {
  readonly generation: number;
  /** APTPL: survives a restart. */
  readonly persist: boolean;
  readonly registrations: readonly Registration[];
  /** 0: no reservation. */
  readonly type: number;
  /** Index of the holder in `registrations`; -1 without a reservation, and for the all-registrants types. */
  readonly holder: number;
}

export const NO_RESERVATIONS: ReservationState = {
  generation: 0,
  persist: false,
  registrations: [],
  type: 0,
  holder: -1,
};

/** Keeps persistent reservations over restarts. */
export interface ReservationStore {
  /** What was stored when the store was opened. */
  readonly initial: ReservationState | undefined;
  /** Resolves when the state is durable; rejects when it is not. Calls never overlap. */
  save(state: ReservationState): Promise<void>;
}

export function isAllRegistrants(type: number): boolean {
  return type === WRITE_EXCLUSIVE_ALL_REGISTRANTS || type === EXCLUSIVE_ACCESS_ALL_REGISTRANTS;
}

/** Every registered nexus has access: REGISTRANTS ONLY and ALL REGISTRANTS. */
export function admitsRegistrants(type: number): boolean {
  return type >= WRITE_EXCLUSIVE_REGISTRANTS_ONLY;
}

/** Others may read. */
export function isWriteExclusive(type: number): boolean {
  return (
    type === WRITE_EXCLUSIVE || type === WRITE_EXCLUSIVE_REGISTRANTS_ONLY || type === WRITE_EXCLUSIVE_ALL_REGISTRANTS
  );
}

export function isReservationType(type: number): boolean {
  return type === WRITE_EXCLUSIVE || type === EXCLUSIVE_ACCESS || (type >= 5 && type <= 8);
}
