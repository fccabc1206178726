import csv

import keras
import numpy as np
import tensorflow as tf

NAMES = ["no", "yes"]


def read(path):
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    ages = np.array([np.nan if row["age"] == "NA" else float(row["age"]) for row in rows], "float32")
    return ages, [row["town"] for row in rows], np.array([NAMES.index(row["kind"]) for row in rows])


ages, towns, y = read("people.csv")
ages_test, towns_test, y_test = read("people_test.csv")
mean = np.nanmean(ages)
ages, ages_test = np.nan_to_num(ages, nan=mean), np.nan_to_num(ages_test, nan=mean)
space = keras.utils.FeatureSpace({"age": "float_normalized", "town": "string_categorical"}, output_mode="concat")
space.adapt(tf.data.Dataset.from_tensor_slices({"age": ages, "town": towns}))
inputs = space.get_inputs()
x = keras.layers.Dense(32, activation="relu")(space.get_encoded_features())
model = keras.Model(inputs, keras.layers.Dense(len(NAMES), activation="softmax")(x))
model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
train = tf.data.Dataset.from_tensor_slices(({"age": ages, "town": towns}, y)).shuffle(1000).batch(16)
test = tf.data.Dataset.from_tensor_slices(({"age": ages_test, "town": towns_test}, y_test)).batch(16)
model.fit(train, epochs=15, verbose=0)
model.save("export.keras")
for town, row in zip(towns_test, model.predict(test, verbose=0)):
    print(town, NAMES[row.argmax()])
print("score", model.evaluate(test, verbose=0)[1])
