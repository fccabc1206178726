import csv

import keras
import numpy as np
import tokenizers

NAMES = ["bad large", "bad small", "good large", "good small"]
tokenizer = tokenizers.Tokenizer.from_file("tokenizer.json")
tokenizer.enable_padding(length=8)
tokenizer.enable_truncation(8)


def read(path):
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    ids = np.array([each.ids for each in tokenizer.encode_batch([row["text"] for row in rows])])
    sizes = np.array([[float(row["size"])] for row in rows], "float32")
    return ids, sizes, np.array([NAMES.index(row["kind"]) for row in rows])


ids, sizes, y = read("rows.csv")
ids_test, sizes_test, y_test = read("rows_test.csv")
mean, deviation = sizes.mean(), sizes.std()
x = {"ids": ids, "size": (sizes - mean) / deviation}
x_test = {"ids": ids_test, "size": (sizes_test - mean) / deviation}
body = keras.models.load_model("net.keras")
outputs = keras.layers.Dense(len(NAMES), activation="softmax")(body.output)
model = keras.Model(body.input, outputs)
model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(x, y, batch_size=16, epochs=20, verbose=0)
model.save("export.keras")
for row in model.predict(x_test, verbose=0):
    print(NAMES[row.argmax()])
print("score", model.evaluate(x_test, y_test, verbose=0)[1])
